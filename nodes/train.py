"""Train a robust text encoder inside the graph."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..advunlearn.config.concept import ConceptConfig
from ..advunlearn.config.io import FileDtype, ModelConfig, OutputConfig, RetainConfig
from ..advunlearn.config.presets import AUTO, PRESETS, describe_all_settings, make_run, resolve_preset
from ..advunlearn.config.training import SECTIONS, RunConfig, TrainConfig
from ..advunlearn.errors import AdvUnlearnError, TrainingDiverged
from ..advunlearn.files import find_name_fault
from . import folders, resuming
from .status import Status, refuse, with_status
from .training_settings import COMFYUI_DTYPE, Attack, Bank, Training
from .widgets import output, resolution, schema, seed, widget

if TYPE_CHECKING:
    from ..advunlearn.training.checkpoint import Checkpoints
    from ..advunlearn.training.stored_run import StoredRun

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
            return refuse("save_name", fault)
        if concept is None or preset is None or kind is None:
            return True
        try:
            make_run(resolve_preset(preset, kind, False), {"concept": {"concept": concept, "kind": kind}})
        except AdvUnlearnError as error:
            return refuse("concept", error)
        return True

    @classmethod
    @with_status
    def execute(cls, status: Status, model: Any, clip: Any, vae: Any = None, **values: Any) -> io.NodeOutput:
        """Train and save the encoder; return the robust CLIP.

        Raises AdvUnlearnError for settings that cannot work, a run that does not fit into memory, and a loss that is
        not finite (the last good weights are saved then).
        """
        from ..advunlearn.formats.text_encoders import choose_file_dtype, export_state, save_encoder
        from ..advunlearn.reporting.training_summary import summarize_training
        from ..advunlearn.training.checkpoint import Checkpoints
        from ..advunlearn.training.recipe import recipe_metadata
        from . import clip_l, host

        name = values["save_name"]
        with folders.lock_name(name), host.enable_gradients():
            checkpoints = Checkpoints(folders.run_folder(name))
            stored = resuming.find_run(checkpoints, status, name) if values["resume"] else None
            job = prepare(status, model, clip, vae, values, stored)
            progress = make_progress(status, job, name, stored, checkpoints)
            result = train_or_keep(job, name, progress, checkpoints, stored is not None)
            path, listed = folders.new_path(name)
            dtype = choose_file_dtype(job.encoder_dtype, result.encoder)
            save_encoder(path, result.encoder, recipe_metadata(job.model, job.run), dtype)
            state = {k: v for k, v in export_state(result.encoder).items() if not k.startswith("text_projection")}
            robust = clip_l.replace_encoder(clip, state, 1.0, "the trained encoder")
            compared = progress.compare_snapshots(result, listed)
            checkpoints.remove()  # not earlier: the run can be resumed until the encoder is on disk
        status.note = ""
        status.show(f"done: {result.iterations} iterations, saved as {listed}")
        losses = {"loss": [row["loss"] for row in result.losses]}
        report = summarize_training(job.run, result, path, job.warnings, [*compared, *job.details])
        shown = ui.PreviewImage(host.to_image(progress.picture()), cls=cls)
        return io.NodeOutput(robust, listed, losses, report, ui=shown)


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
            tooltip="resume the cancelled run saved under this name, with the settings that it was started with; the "
            "number of iterations may be raised",
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
    keep_every: int


def prepare(
    status: Status, model: Any, clip: Any, vae: Any, values: Mapping[str, Any], stored: StoredRun | None
) -> Job:
    """Resolve the settings for the model, check the memory, and log what is erased and how.

    A resumed run takes the settings that are stored with it.
    Raises AdvUnlearnError for settings that cannot work and for a run that does not fit into memory.
    """
    from ..advunlearn.prompts.prompt_files import parse_lines
    from ..advunlearn.prompts.retain import resolve_retain_set
    from ..advunlearn.prompts.scope import make_scope
    from ..advunlearn.training.guard_rails import find_warnings
    from . import host, memory

    status.show("loading the model")
    connected = [values[name] for name in ("training", "attack", "bank") if values.get(name)]
    small, own = host.is_miniature(model), host.own_resolution(model)
    preset = resolve_preset(values["preset"], values["kind"], small)
    run = make_run(preset, merge_changes(values, connected))
    options = values["training"]["node"] if values.get("training") else {}
    resolution = values["resolution"] or own
    size = stored.resolution if stored else resolution
    adapted = host.make_model(model, clip, vae, size, choose_dtype(options))
    adapted.denoiser.on_predict = status.beat
    retain_set = resolve_retain_set(values["retain_set"], small)
    retained = parse_lines(values["retain_prompts"])
    long_prompts = "cut" if run.train.mode == "official" else adapted.long_prompts
    scope = make_scope(run.concept, retain_set, retained, None, adapted.tokenizer, long_prompts)
    prompts, details = scope.retained, [scope.describe()]
    if stored:
        details = [resuming.describe_ignored(stored, run, prompts, resolution)]
        run, prompts = stored.resume_with(run), stored.retain_prompts
    warnings = find_warnings(adapted, run, retain_set, small, own)
    log("\n".join(details).splitlines(), warnings)
    status.show("estimating the memory")
    run, memory_line = memory.fit_run(adapted, run, prompts, values["memory"])
    shown = [status.note, memory_line.split(";")[0], *(details if stored else ()), *warnings]
    status.note = "\n".join(filter(None, shown))
    chosen = f"preset {preset}{' (auto)' * (values['preset'] == AUTO)}"
    described = f"{chosen}, retain set {retain_set}, resolution {size}\n{describe_all_settings(run)}"
    log([memory_line, *described.splitlines()])
    return Job(
        adapted,
        run,
        prompts,
        warnings,
        [*details, memory_line, described],
        options.get("sample_every", SAMPLE_EVERY),
        options.get("encoder_dtype", OutputConfig.encoder_dtype),
        options.get("keep_every", 0),
    )


def choose_dtype(options: Mapping[str, Any]) -> Any:
    """Return the dtype of the computation from a settings node; None leaves it to the host."""
    import torch

    dtype = options.get("dtype", COMFYUI_DTYPE)
    return None if dtype == COMFYUI_DTYPE else getattr(torch, dtype)


def make_progress(status: Status, job: Job, name: str, stored: StoredRun | None, checkpoints: Checkpoints) -> Any:
    """Return the run's callback, which has shown the sample images of the original model."""
    from ..advunlearn.reporting.snapshots import Snapshots
    from . import preview

    progress = preview.Training(status, job.run, bool(job.prompts))
    status.describe_stop = functools.partial(progress.describe_stop, name)
    if stored:
        progress.resume(stored.history)
    if job.keep_every:
        samples = preview.sample_for_measure(job.model, job.run.concept.prompts[0], job.prompts)
        save = functools.partial(save_snapshot, job, name)
        progress.snapshots = Snapshots(samples, job.keep_every, save, checkpoints.folder, stored is not None)
    if job.sample_every:
        progress.start(preview.Samples(job.model, job.run.concept.prompts[0], job.prompts, job.sample_every))
    return progress


def save_snapshot(job: Job, name: str, encoder: Any, iteration: int) -> str:
    """Save an intermediate encoder; return the name under which it is listed."""
    from ..advunlearn.formats.text_encoders import choose_file_dtype, save_encoder
    from ..advunlearn.training.recipe import recipe_metadata

    path, listed = folders.new_path(f"{name}_at_{iteration}")
    metadata = recipe_metadata(job.model, job.run, iterations=iteration)
    save_encoder(path, encoder, metadata, choose_file_dtype(job.encoder_dtype, encoder))
    return listed


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
