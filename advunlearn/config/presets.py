"""Presets: the published settings (arXiv 2405.15234 and its code) by kind of concept, and the miniature's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..errors import AdvUnlearnError
from .concept import bare_name
from .training import SECTIONS, RunConfig, TrainConfig

Sections = Mapping[str, Mapping[str, object]]  # section of `RunConfig` -> setting -> value

AUTO = "auto"  # the miniature's settings for the miniature, the published ones of the concept's kind for other models
CUSTOM = "custom"
MINIATURE = "miniature"


def _make_preset(retain_weight: float, kind: str, **concept: str) -> Sections:
    """Return the settings that all published encoders share, with those that differ."""
    return {
        "concept": {"kind": kind, "negative_guidance": 1.0, **concept},
        "train": {
            "iterations": 1000,
            "warmup": 200,
            "lr": 1e-5,
            "batch": 1,
            "clean_share": 0.0,
            "retain_batch": 5,
            "retain_weight": retain_weight,
            "retain_mode": "loss",
            "trainable": "layers",
            "num_layers": 0,
            "final_norm": "auto",
        },
        # The published start "random" draws rows of the embedding table, which is called token here.
        "attack": {
            "steps": 30,
            "step_size": 1e-3,
            "unit": "absolute",
            "update": "adam",
            "tokens": 1,
            "start": "token",
            "restarts": 1,
            "resample": "step",
            "radius": 0.0,
            "position": "prefix",
            "space": "embedding",
            "attack_interval": 1,
        },
        "bank": {"sampling_steps": 50, "guidance_scale": 3.0},
    }


PRESETS: dict[str, Sections] = {
    CUSTOM: {},
    MINIATURE: {},  # the defaults of the settings were chosen on it
    "quick": {  # the miniature on a CPU in ComfyUI, which loads it widened from 64 channels to 320
        "train": {"iterations": 40, "warmup": 3, "lr": 4e-4, "batch": 4, "retain_batch": 4},
        "attack": {"steps": 2, "restarts": 1},
        "bank": {"trajectories": 8, "retain_trajectories": 48, "sampling_steps": 10},
    },
    "nudity": _make_preset(0.3, "prompt", concept="nudity"),
    "style": _make_preset(0.5, "style"),
    "object": _make_preset(0.5, "object"),
}


def resolve_preset(name: str, kind: str, is_miniature: bool) -> str:
    """Return the preset that `auto` stands for, or the name itself.

    Args:
        name: a preset, or `AUTO`.
        kind: kind of the concept, see `ConceptConfig`. A prompt that is used verbatim trains as an object does.
        is_miniature: whether the model is the miniature.
    """
    if name != AUTO:
        return name
    if is_miniature:
        return MINIATURE
    return "style" if kind == "style" else "object"


def preset_values(name: str, section: str) -> dict[str, object]:
    """Return a preset's values for one section of `RunConfig`; {} if the preset does not set any."""
    return dict(PRESETS[name].get(section, {}))


def shorten_warmup(iterations: int, warmup: int) -> int:
    """Return the warm-up of a run: as given, or a fifth of the iterations if none would be left for the attack."""
    return warmup if iterations > warmup else iterations // 5


def make_run(preset: str, changes: Sections) -> RunConfig:
    """Return the settings of a preset with some of them changed.

    Without a warm-up in `changes`, a run that is shorter than the preset's warm-up has a warm-up of a fifth.

    Args:
        preset: one of `PRESETS`.
        changes: settings that override the preset's; an empty concept stands for the preset's.

    Raises AdvUnlearnError for a concept or a kind that the preset is not for, and for a value out of range.
    """
    values = {section: {**preset_values(preset, section), **changes.get(section, {})} for section in SECTIONS}
    values["concept"] = _agree_on_concept(preset, values["concept"])
    given, train = changes.get("train", {}), values["train"]
    if "iterations" in given and "warmup" not in given:
        warmup = train.get("warmup", TrainConfig().warmup)
        train["warmup"] = shorten_warmup(given["iterations"], warmup)  # type: ignore[arg-type]
    return RunConfig.from_dict(values)


def _agree_on_concept(preset: str, values: Mapping[str, object]) -> dict[str, object]:
    """Return the section `concept`; an empty concept becomes the preset's. Raises AdvUnlearnError, see `make_run`."""
    own = preset_values(preset, "concept")
    name, kind = str(values.get("concept", "")), str(values.get("kind", ""))
    if concept := str(own.get("concept", "")):
        if name.strip() and bare_name(name) != concept:
            raise AdvUnlearnError(
                f"preset {preset} is for the concept {concept}, but concept is {name.strip()!r}; set concept to "
                f"{concept}, or preset to {AUTO}"
            )
        values = {**values, "concept": concept}
    if own and (kind == "style") != (own["kind"] == "style"):
        raise AdvUnlearnError(
            f"preset {preset} is for the kind {own['kind']}, but kind is {kind}; set kind to {own['kind']}, or preset "
            f"to {AUTO}"
        )
    return dict(values)


def describe_all_settings(run: RunConfig) -> str:
    """Return all settings of a run as its mode uses them, a line for each section."""
    run = dataclasses.replace(run, attack=run.attack.in_mode(run.train.mode))
    sections = {
        section: ", ".join(f"{name} {show_value(value)}" for name, value in values.items() if value != "")
        for section, values in run.to_dict().items()
    }
    return "\n".join(f"{section}: {settings}" for section, settings in sections.items())


def describe_main_settings(run: RunConfig) -> str:
    """Return the settings that decide most about a run, on one line."""
    train, attack = run.train, run.attack.in_mode(run.train.mode)
    parts = [
        f"mode {train.mode}",
        f"{train.iterations} iterations",
        f"lr {show_value(train.lr)}",
        f"batch {train.batch}",
    ]
    if train.retains:
        parts.append(f"retain_batch {train.retain_batch}, retain_weight {show_value(train.retain_weight)}")
    if train.attacks:
        parts.append(f"warmup {train.warmup}, attack steps {attack.steps}, restarts {attack.restarts}")
    return ", ".join(parts)


def describe_preset_values(section: str, name: str) -> str:
    """Return the values that the presets give one setting: "0.25", or "miniature 2; nudity 0.3; object, style 0.5"."""
    default = next(field.default for field in dataclasses.fields(SECTIONS[section]) if field.name == name)  # type: ignore[arg-type]
    by_value: dict[str, list[str]] = {}
    for preset in PRESETS:
        if preset != CUSTOM:  # has the values of the miniature
            value = show_value(preset_values(preset, section).get(name, default))
            by_value.setdefault(value, []).append(preset)
    if len(by_value) == 1:
        return next(iter(by_value))
    return "; ".join(f"{', '.join(presets)} {value}" for value, presets in by_value.items())


def show_value(value: object) -> str:
    """Return a setting's value as text: 1e-05, true, mixed."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)
