"""A training run in the graph, ready to start: the settings resolved for the model, and the memory checked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..advunlearn.config.io import FileDtype, OutputConfig
from ..advunlearn.config.presets import AUTO, describe_all_settings, describe_main_settings, make_run, resolve_preset
from ..advunlearn.config.training import SECTIONS, RunConfig
from . import resuming
from .status import Status
from .training_settings import COMFYUI_DTYPE, SAMPLE_EVERY

if TYPE_CHECKING:
    from ..advunlearn.prompts.scope import Scope
    from ..advunlearn.training.stored_run import StoredRun


@dataclass(frozen=True)
class Job:
    """A run that is ready to start: the model, the settings, and what is said about them."""

    model: Any  # HostModel
    run: RunConfig
    preset: str  # "" for a resumed run
    prompts: list[str]  # retained
    warnings: list[str]
    details: list[str]
    sample_every: int
    encoder_dtype: FileDtype
    keep_every: int


@dataclass(frozen=True)
class Request:
    """What the node and its settings nodes ask for, resolved for a model."""

    run: RunConfig
    preset: str
    retain_set: str
    resolution: int
    small: bool  # whether the model is the miniature
    own_resolution: int  # of the model
    options: Mapping[str, Any]  # of the settings node, that are no settings of the library

    @classmethod
    def from_values(cls, model: Any, values: Mapping[str, Any]) -> Request:
        """Resolve the node's inputs."""
        from ..advunlearn.prompts.retain import resolve_retain_set
        from . import host

        connected = [values[name] for name in ("training", "attack", "bank") if values.get(name)]
        small, own = host.is_miniature(model), host.own_resolution(model)
        preset = resolve_preset(values["preset"], values["kind"], small)
        return cls(
            run=make_run(preset, merge_changes(values, connected)),
            preset=f"{preset}{' (auto)' * (values['preset'] == AUTO)}",
            retain_set=resolve_retain_set(values["retain_set"], small),
            resolution=values["resolution"] or own,
            small=small,
            own_resolution=own,
            options=values["training"]["node"] if values.get("training") else {},
        )

    def make_scope(self, model: Any, retain_prompts: str) -> Scope:
        """Return what is erased and what is retained, with the user's own lines."""
        from ..advunlearn.prompts.prompt_files import parse_lines
        from ..advunlearn.prompts.scope import make_scope

        own = parse_lines(retain_prompts)
        long_prompts = "cut" if self.run.train.mode == "official" else model.long_prompts
        return make_scope(self.run.concept, self.retain_set, own, None, model.tokenizer, long_prompts)


def prepare(
    status: Status, model: Any, clip: Any, vae: Any, values: Mapping[str, Any], stored: StoredRun | None
) -> Job:
    """Resolve the settings for the model, check the memory, and log what is erased and how.

    A resumed run takes the settings that are stored with it.
    Raises AdvUnlearnError for settings that cannot work and for a run that does not fit into memory.
    """
    from ..advunlearn.training.guard_rails import find_warnings
    from . import host, memory

    status.show("loading the model")
    asked = Request.from_values(model, values)
    size = stored.resolution if stored else asked.resolution
    adapted = host.make_model(model, clip, vae, size, choose_dtype(asked.options))
    adapted.denoiser.on_predict = status.beat
    scope = asked.make_scope(adapted, values["retain_prompts"])
    run, prompts = asked.run, scope.retained
    details, source = [scope.describe()], f"preset {asked.preset}, retain set {asked.retain_set}, resolution {size}"
    if stored:
        details = [resuming.describe_ignored(stored, run, prompts, asked.resolution)]
        run, prompts, source = stored.resume_with(run), stored.retain_prompts, f"stored settings, resolution {size}"
    warnings = find_warnings(adapted, run, asked.retain_set, asked.small, asked.own_resolution)
    log("\n".join(details).splitlines(), warnings)
    status.show("estimating the memory")
    run, memory_line = memory.fit_run(adapted, run, prompts, values["memory"])
    shown = [status.note, memory_line.split(";")[0], *(details if stored else ()), *warnings]
    status.note = "\n".join(filter(None, shown))
    status.details = f"{source}: {describe_main_settings(run)}"
    details += [memory_line, f"{source}\n{describe_all_settings(run)}"]
    log("\n".join(details[1:]).splitlines())
    return Job(
        adapted,
        run,
        "" if stored else asked.preset,
        prompts,
        warnings,
        details,
        asked.options.get("sample_every", SAMPLE_EVERY),
        asked.options.get("encoder_dtype", OutputConfig.encoder_dtype),
        asked.options.get("keep_every", OutputConfig.keep_every),
    )


def choose_dtype(options: Mapping[str, Any]) -> Any:
    """Return the dtype of the computation from a settings node; None leaves it to the host."""
    import torch

    dtype = options.get("dtype", COMFYUI_DTYPE)
    return None if dtype == COMFYUI_DTYPE else getattr(torch, dtype)


def merge_changes(
    values: Mapping[str, Any], connected: Iterable[Mapping[str, Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Return the settings that the node and the connected settings nodes change, by section."""
    shown = {
        "concept": {name: values[name] for name in ("concept", "kind")},
        "train": {"seed": values["seed"]} | ({"iterations": values["iterations"]} if values["iterations"] else {}),
    }
    changes: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for source in (*connected, shown):
        for section in SECTIONS:
            changes[section] |= source.get(section, {})
    return changes


def log(lines: Iterable[str], warnings: Iterable[str] = ()) -> None:
    """Write lines and warnings into the host's log."""
    for line in lines:
        logging.info("AdvUnlearn: %s", line)
    for warning in warnings:
        logging.warning("AdvUnlearn: %s", warning)
