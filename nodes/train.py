"""Train a robust text encoder inside the graph."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..advunlearn.config.concept import ConceptConfig
from ..advunlearn.config.io import FileDtype, ModelConfig, OutputConfig, RetainConfig
from ..advunlearn.config.presets import AUTO, PRESETS, describe_all_settings, make_run, resolve_preset
from ..advunlearn.config.training import SECTIONS, RunConfig, TrainConfig
from ..advunlearn.errors import AdvUnlearnError, TrainingDiverged
from ..advunlearn.files import find_name_fault
from . import folders
from .training_settings import COMFYUI_DTYPE, Attack, Bank, Training
from .widgets import output, resolution, schema, seed, widget

SAMPLE_EVERY = 25  # without a settings node


class TrainAdvUnlearnEncoder(io.ComfyNode):
    """AdvUnlearn on the user's MODEL and CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnTrain",
            display_name="Train AdvUnlearn Encoder",
            description="Train the text encoder so that the model forgets a concept, even under adversarial prompts "
            "(Zhang et al., NeurIPS 2024). MODEL and CLIP are not changed; the output is a new, robust CLIP.",
            search_aliases=["unlearn", "erase concept", "adversarial training"],
            is_output_node=True,
            inputs=[*_widgets(), *_sockets()],
            outputs=[
                io.Clip.Output("CLIP", tooltip="the robust CLIP, ready to use"),
                output(io.String, "encoder_name", tooltip="the name of the saved encoder in Load Robust CLIP"),
                output(io.LossMap, "loss_map", tooltip="the training loss, for Plot Loss Graph"),
                output(io.String, "report", tooltip="summary of the run: warnings, losses, memory and all settings"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        concept: str | None = None,
        preset: str | None = None,
        kind: str | None = None,
        save_name: str | None = None,
    ) -> bool | str:
        """Reject what cannot be trained before the graph runs; the host passes None for a linked input."""
        if save_name is not None and (fault := find_name_fault(save_name, folders=True)):
            return fault
        if concept is None or preset is None or kind is None:
            return True
        try:
            make_run(resolve_preset(preset, kind, False), {"concept": {"concept": concept, "kind": kind}})
        except AdvUnlearnError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any = None, **values: Any) -> io.NodeOutput:
        """Train and save the encoder; return the robust CLIP.

        Raises AdvUnlearnError for settings that cannot work, a run that does not fit into memory, and a loss that is
        not finite (the last good weights are saved then).
        """
        from ..advunlearn.formats.text_encoders import choose_file_dtype, export_state, save_encoder
        from ..advunlearn.reporting.training_summary import summarize_training
        from ..advunlearn.training.checkpoint import Checkpoints
        from ..advunlearn.training.recipe import recipe_metadata
        from . import clip_l, host, preview

        name = values["save_name"]
        checkpoints = Checkpoints(folders.run_folder(name))
        with folders.lock_name(name), host.enable_gradients():
            job = prepare(model, clip, vae, values)
            progress = preview.Training(cls.hidden.unique_id, job.run, bool(job.prompts))
            if job.sample_every:
                concept = job.run.concept.prompts[0]
                progress.samples = preview.Samples(job.model, concept, job.prompts, job.sample_every)
            # A run that was cancelled while its bank was filled has no checkpoint and starts from the beginning.
            result = train_or_keep(job, name, progress, checkpoints, values["resume"] and checkpoints.exists())
            path, listed = folders.new_path(name)
            dtype = choose_file_dtype(job.encoder_dtype, result.encoder)
            save_encoder(path, result.encoder, recipe_metadata(job.model, job.run), dtype)
            state = {k: v for k, v in export_state(result.encoder).items() if not k.startswith("text_projection")}
            robust = clip_l.replace_encoder(clip, state, 1.0, "the trained encoder")
            checkpoints.remove()  # not earlier: the run can be resumed until the encoder is on disk
        losses = {"loss": [row["loss"] for row in result.losses]}
        return io.NodeOutput(
            robust, listed, losses, summarize_training(job.run, result, path, job.warnings, job.details)
        )


def _widgets() -> list[Any]:
    """Return the inputs with a value; their order is part of saved graphs."""
    return [
        io.Model.Input("model", tooltip="a Stable Diffusion 1.x model; it is not changed"),
        io.Clip.Input("clip", tooltip="the CLIP to train; a copy is trained"),
        widget(ConceptConfig, "concept", multiline=True),
        widget(ConceptConfig, "kind"),
        io.Combo.Input(
            "preset",
            options=[AUTO, *PRESETS],
            tooltip="settings that are not shown here. auto: the miniature's own for the miniature, for other models "
            "the published ones of the kind (object, style); nudity: the published ones for the concept nudity; "
            "custom: the miniature's, for settings nodes that change all that matters",
        ),
        widget(TrainConfig, "iterations", default=0, least=0, help="number of training iterations (0: the preset's)"),
        widget(RetainConfig, "retain_set"),
        io.String.Input(
            "retain_prompts",
            default="",
            multiline=True,
            tooltip="your own retained prompts, one per line; they are added to retain_set",
        ),
        resolution("size of the images during training"),
        widget(ModelConfig, "memory"),
        seed(TrainConfig),
        io.String.Input("save_name", default="robust_clip", tooltip="file name of the encoder, in output/clip"),
        io.Boolean.Input(
            "resume",
            default=False,
            tooltip="resume the cancelled run saved under this name (all other settings must match)",
        ),
    ]


def _sockets() -> list[Any]:
    """Return the optional inputs."""
    without = "Without it, the preset's settings are used"
    return [
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="decodes the sample images on the node; without a VAE they are rough colour previews",
        ),
        Training.Input(
            "training",
            optional=True,
            tooltip=f"learning rate, batches and more: AdvUnlearn Training Settings. {without}",
        ),
        Attack.Input("attack", optional=True, tooltip=f"the adversary: AdvUnlearn Attack Settings. {without}"),
        Bank.Input("bank", optional=True, tooltip=f"the trajectory bank: AdvUnlearn Bank Settings. {without}"),
    ]


@dataclass(frozen=True)
class Job:
    """A run that is ready to start: the model, the settings, and what is said about them."""

    model: Any  # HostModel
    run: RunConfig
    prompts: list[str]  # retained
    warnings: list[str]
    details: list[str]
    sample_every: int
    encoder_dtype: FileDtype


def prepare(model: Any, clip: Any, vae: Any, values: Mapping[str, Any]) -> Job:
    """Resolve the settings for the model, check the memory, and log what is erased and how.

    Raises AdvUnlearnError for settings that cannot work and for a run that does not fit into memory.
    """
    import torch

    from ..advunlearn.prompts.prompt_files import parse_lines
    from ..advunlearn.prompts.retain import resolve_retain_set
    from ..advunlearn.prompts.scope import make_scope
    from ..advunlearn.training.guard_rails import find_warnings
    from . import host, memory

    connected = [values[name] for name in ("training", "attack", "bank") if values.get(name)]
    small, own = host.is_miniature(model), host.own_resolution(model)
    preset = resolve_preset(values["preset"], values["kind"], small)
    run = make_run(preset, merge_changes(values, connected))
    options = values["training"]["node"] if values.get("training") else {}
    dtype = options.get("dtype", COMFYUI_DTYPE)
    adapted = host.make_model(
        model, clip, vae, values["resolution"] or own, None if dtype == COMFYUI_DTYPE else getattr(torch, dtype)
    )
    retain_set = resolve_retain_set(values["retain_set"], small)
    retained = parse_lines(values["retain_prompts"])
    long_prompts = "cut" if run.train.mode == "official" else adapted.long_prompts
    scope = make_scope(run.concept, retain_set, retained, None, adapted.tokenizer, long_prompts)
    warnings = find_warnings(adapted, run, retain_set, small, own)
    log(scope.describe().splitlines(), warnings)
    run, memory_line = memory.fit_run(adapted, run, scope.retained, values["memory"])
    chosen = f"preset {preset}{' (auto)' * (values['preset'] == AUTO)}"
    described = f"{chosen}, retain set {retain_set}, resolution {adapted.resolution}\n{describe_all_settings(run)}"
    log([memory_line, *described.splitlines()])
    return Job(
        adapted,
        run,
        scope.retained,
        warnings,
        [scope.describe(), memory_line, described],
        options.get("sample_every", SAMPLE_EVERY),
        options.get("encoder_dtype", OutputConfig.encoder_dtype),
    )


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


def train_or_keep(job: Job, name: str, progress: Any, checkpoints: Any, resume: bool) -> Any:
    """Train. If the loss is not finite, save the last good weights and raise AdvUnlearnError that names their file."""
    from ..advunlearn.formats.text_encoders import choose_file_dtype, save_encoder
    from ..advunlearn.training.trainer import train

    try:
        return train(job.model, job.run, job.prompts, callback=progress, checkpoints=checkpoints, resume=resume)
    except TrainingDiverged as error:
        path, listed = folders.new_path(name + "_last_good")
        dtype = choose_file_dtype(job.encoder_dtype, error.result.encoder)
        save_encoder(path, error.result.encoder, {"advunlearn.error": str(error)}, dtype)
        raise AdvUnlearnError(f"{error}. They are in {listed!r}") from error
