"""Train a robust text encoder inside the graph."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..advunlearn.config.concept import ConceptConfig
from ..advunlearn.config.io import ModelConfig, RetainConfig
from ..advunlearn.config.presets import AUTO, PRESETS, make_run, resolve_preset
from ..advunlearn.config.training import TrainConfig
from ..advunlearn.errors import AdvUnlearnError, TrainingDiverged
from ..advunlearn.files import check_name, find_name_fault
from . import folders, resuming
from .job import Job, prepare
from .loaded_files import check_loaded_files
from .status import Status, refuse, with_status
from .training_settings import Attack, Bank, Training
from .widgets import output, resolution, schema, seed, widget

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Mapping

    from ..advunlearn.config.io import FileDtype
    from ..advunlearn.training.checkpoint import Checkpoints
    from ..advunlearn.training.stored_run import StoredRun

# Endings of the names of further encoders, and the bytes that they may take: `_at_` before eight digits.
SNAPSHOT, LAST_GOOD = "_at_{}", "_last_good"
RESERVED = 12


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
        if save_name is not None and (fault := find_name_fault(save_name, folders=True, reserved=RESERVED)):
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
        from ..advunlearn.reporting.training_summary import summarize_training
        from ..advunlearn.training.checkpoint import Checkpoints
        from . import host, text_encoders

        check_loaded_files(cls.hidden)
        # Again: `validate_inputs` does not see the value of a link.
        name = check_name(values["save_name"], folders=True, reserved=RESERVED)
        with folders.lock_name(name), host.enable_gradients():
            checkpoints = Checkpoints(folders.run_folder(name))
            stored = resuming.find_run(checkpoints, status, name) if values["resume"] else None
            job = prepare(status, model, clip, vae, values, stored)
            progress = make_progress(status, job, name, stored, checkpoints)
            result = train_or_keep(job, name, progress, checkpoints, stored is not None)
            path, listed = save_trained(job, name, result.encoder, make_metadata(job))
            checkpoints.remove()  # not earlier: the run can be resumed until the encoder is on disk
            status.describe_stop = lambda: f"saved as {listed}; the comparison of intermediate encoders was stopped"
            states = text_encoders.export_parts(result.encoder, job.run.train.encoders)
            robust = text_encoders.replace_parts(clip, states, "the trained encoder")
            compared = progress.compare_snapshots(result, listed)
        status.note = status.details = ""
        status.show(f"done: {result.iterations} iterations, saved as {listed}")
        losses = {"loss": [row["loss"] for row in result.losses]}
        report = summarize_training(job.run, result, path, job.warnings, [*compared, *job.details])
        shown = ui.PreviewImage(host.to_image(progress.picture()), cls=cls)
        return io.NodeOutput(robust, listed, losses, report, ui=shown)


def _widgets() -> list[Any]:
    """Return the inputs with a value; their order is part of saved graphs."""
    return [
        io.Model.Input("model", tooltip="a Stable Diffusion 1.x or SDXL model; it is not changed"),
        io.Clip.Input("clip", tooltip="the CLIP to train; a copy is trained"),
        widget(ConceptConfig, "concept", multiline=True),
        widget(ConceptConfig, "kind"),
        io.Combo.Input(
            "preset",
            options=[AUTO, *PRESETS],
            tooltip="settings that are not shown here. auto: the miniature's own for the miniature, for other models "
            "the published ones of the kind (object, style); nudity: the published ones for the concept nudity; "
            "quick: a short run for the miniature on a CPU; custom: the miniature's, for settings nodes that change "
            "all that matters",
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
        io.String.Input(
            "save_name",
            default="robust_clip",
            tooltip="file name of the encoder, in output/clip; %year%, %month%, %day% and the like are replaced",
        ),
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


def make_progress(status: Status, job: Job, name: str, stored: StoredRun | None, checkpoints: Checkpoints) -> Any:
    """Return the run's callback, which has shown the sample images of the original model."""
    from ..advunlearn.reporting.snapshots import Snapshots, make_samples
    from . import preview

    progress = preview.Training(status, job.run, bool(job.prompts))
    status.describe_stop = functools.partial(progress.describe_stop, name)
    if stored:
        progress.resume(stored.history)
    if job.keep_every:
        samples = make_samples(job.model, job.run.concept.prompts[0], job.prompts)
        save = functools.partial(save_snapshot, job, name)
        progress.snapshots = Snapshots(samples, job.keep_every, save, checkpoints.folder, stored is not None)
    if job.sample_every:
        progress.start(preview.Samples(job.model, job.run.concept.prompts[0], job.prompts, job.sample_every))
    return progress


def make_metadata(job: Job, **more: object) -> Mapping[str, object]:
    """Return the metadata of an encoder of a run: the recipe, and the name of its preset."""
    from ..advunlearn.training.recipe import recipe_metadata

    preset = {"preset": job.preset} if job.preset else {}
    return recipe_metadata(job.model, job.run, **preset, **more)


def save_snapshot(job: Job, name: str, encoder: Any, iteration: int) -> str:
    """Save an intermediate encoder; return the name under which it is listed."""
    metadata = make_metadata(job, iterations=iteration)
    return save_trained(job, name + SNAPSHOT.format(iteration), encoder, metadata)[1]


def save_trained(
    job: Job, name: str, encoder: Any, metadata: Mapping[str, object], dtype: FileDtype | None = None
) -> tuple[pathlib.Path, str]:
    """Save the trained parts of an encoder in new numbered files; return the first file's path and listed name.

    Their dtype is the one that the user chose (`dtype`: another one).
    """
    from ..advunlearn.formats.text_encoders import choose_file_dtype
    from . import text_encoders

    file_dtype = choose_file_dtype(dtype or job.encoder_dtype, encoder)
    return text_encoders.save_parts(name, encoder, job.run.train.encoders, metadata, file_dtype)


def train_or_keep(job: Job, name: str, progress: Any, checkpoints: Any, resume: bool) -> Any:
    """Train. If the loss is not finite, save the last good weights and raise AdvUnlearnError that names their file.

    They are saved in float32: weights of a run that diverges may be too large for float16.
    """
    from ..advunlearn.training.trainer import train

    try:
        return train(job.model, job.run, job.prompts, callback=progress, checkpoints=checkpoints, resume=resume)
    except TrainingDiverged as error:
        metadata = {"advunlearn.error": str(error)}
        _, listed = save_trained(job, name + LAST_GOOD, error.result.encoder, metadata, "float32")
        raise AdvUnlearnError(f"{error}. They are in {listed!r}") from error
