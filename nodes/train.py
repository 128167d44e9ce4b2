"""Train a robust text encoder inside the graph."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..advunlearn.config.adversary import AdversaryConfig
from ..advunlearn.config.base import DTYPES
from ..advunlearn.config.concept import ConceptConfig
from ..advunlearn.config.presets import PRESETS, preset_values
from ..advunlearn.config.training import SECTIONS, BankConfig, RunConfig, TrainConfig
from ..advunlearn.errors import AdvUnlearnError, TrainingDiverged
from ..advunlearn.files import find_name_fault
from . import folders
from .widgets import advanced, output, prefixed, resolution, schema, settings, widget

RETAIN = {
    "coco": "the objects of COCO (a photo of a <class>)",
    "imagenet": "the 1000 classes of ImageNet (a photo of a <class>)",
    "miniature": "the objects that the miniature knows",
    "none": "only your own retain_prompts",
}
COMFYUI_DTYPE = "default"
PREFIXES = {"attack": "attack_", "bank": "bank_"}  # section of the run configuration -> start of its widgets' ids
CONCEPT_WIDGETS = ("negative_guidance", "schedule")
TRAIN_WIDGETS = (
    "warmup",
    "batch",
    "clean_share",
    "retain_batch",
    "retain_mode",
    "trainable",
    "num_layers",
    "final_norm",
    "checkpointing",
)
ATTACK_WIDGETS = (
    "step_size",
    "update",
    "tokens",
    "position",
    "per_k",
    "start",
    "start_text",
    "restarts",
    "attack_interval",
    "resample",
    "radius",
    "norm",
    "unit",
)
BANK_WIDGETS = ("trajectories", "retain_trajectories", "sampling_steps", "guidance_scale")


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
            inputs=[*_main_inputs(), *_advanced_inputs()],
            outputs=[
                io.Clip.Output("CLIP", tooltip="the robust CLIP, ready to use"),
                output(io.String, "encoder_name", tooltip="the name of the saved encoder in Load Robust CLIP"),
                output(io.LossMap, "loss_map", tooltip="the training loss, for Plot Loss Graph"),
                output(io.String, "report", tooltip="summary of the run: settings, last losses and memory"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, save_name: str | None = None) -> bool | str:
        """Reject an invalid file name before the training starts; the host passes None for a linked input."""
        fault = save_name is not None and find_name_fault(save_name, folders=True)
        return fault or True

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any = None, **values: Any) -> io.NodeOutput:
        """Train and save the encoder; return the robust CLIP.

        Raises AdvUnlearnError for settings that cannot work, a run that does not fit into memory, and a loss that is
        not finite (the last good weights are saved then).
        """
        import torch

        from ..advunlearn.formats.text_encoders import export_state, save_encoder
        from ..advunlearn.prompts.prompt_files import parse_lines
        from ..advunlearn.prompts.scope import make_scope
        from ..advunlearn.training.checkpoint import Checkpoints
        from ..advunlearn.training.recipe import recipe_metadata
        from ..advunlearn.training.trainer import train
        from . import clip_l, host, memory, preview

        run = run_config(values)
        name = values["save_name"]
        own = parse_lines(values["retain_prompts"])
        checkpoints = Checkpoints(folders.run_folder(name))
        # A run that was cancelled while its bank was filled has no checkpoint and starts from the beginning.
        resume = values["resume"] and checkpoints.exists()
        dtype = None if values["dtype"] == COMFYUI_DTYPE else getattr(torch, values["dtype"])
        with folders.lock_name(name), host.enable_gradients():
            original = host.make_model(model, clip, vae, values["resolution"], dtype)
            scope = make_scope(run.concept, values["retain_set"], own, None, original.tokenizer)
            logging.info("AdvUnlearn %s", scope.describe())
            prompts = scope.retained
            progress = preview.Training(cls.hidden.unique_id, run, bool(prompts))
            run, memory_report = memory.fit_run(original, run, prompts)
            if values["sample_every"]:
                progress.samples = preview.Samples(original, run.concept.prompts[0], prompts, values["sample_every"])
            try:
                result = train(
                    original,
                    run,
                    prompts,
                    callback=progress,
                    checkpoints=checkpoints,
                    resume=resume,
                )
            except TrainingDiverged as error:
                path, listed = folders.new_path(name + "_last_good")
                save_encoder(path, error.result.encoder, {"advunlearn.error": str(error)})
                raise AdvUnlearnError(f"{error}. They are in {listed!r}") from error
            path, listed = folders.new_path(name)
            save_encoder(path, result.encoder, recipe_metadata(original, run))
            state = {k: v for k, v in export_state(result.encoder).items() if not k.startswith("text_projection")}
            robust = clip_l.replace_encoder(clip, state, 1.0, "the trained encoder")
            checkpoints.remove()  # not earlier: the run can be resumed until the encoder is on disk
        losses = [row["loss"] for row in result.losses]
        return io.NodeOutput(
            robust, listed, {"loss": losses}, summary(run, result, scope.describe(), memory_report, path)
        )


def _main_inputs() -> list[Any]:
    """Return the inputs that are always shown."""
    return [
        io.Model.Input("model", tooltip="a Stable Diffusion 1.x model; it is not changed"),
        io.Clip.Input("clip", tooltip="the CLIP to train; a copy is trained"),
        widget(ConceptConfig, "concept", multiline=True),
        io.Combo.Input(
            "preset",
            options=list(PRESETS),
            tooltip="custom: use the settings below. nudity, style, object: the published settings for Stable "
            "Diffusion 1.x override them; nudity sets the concept too, style and object use yours",
        ),
        widget(ConceptConfig, "kind"),
        widget(TrainConfig, "mode", only=("advunlearn", "fast", "esd", "official")),
        widget(TrainConfig, "iterations"),
        widget(AdversaryConfig, "steps", id="attack_steps"),
        widget(TrainConfig, "lr"),
        io.Combo.Input(
            "retain_set",
            options=list(RETAIN),
            tooltip="prompts whose images should not change: " + "; ".join(f"{k}: {v}" for k, v in RETAIN.items()),
        ),
        widget(TrainConfig, "retain_weight"),
        widget(TrainConfig, "seed"),
        resolution("size of the images during training; use the size that the model was made for"),
        io.String.Input("save_name", default="robust_clip", tooltip="file name of the encoder, in output/clip"),
        io.Boolean.Input(
            "resume",
            default=False,
            tooltip="resume the cancelled run saved under this name (all other settings must match)",
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="decodes the sample images on the node; without a VAE they are rough colour previews",
        ),
    ]


def _advanced_inputs() -> list[Any]:
    """Return the inputs that the page folds away. Their order is part of saved graphs."""
    return [
        advanced(
            io.Int,
            "sample_every",
            default=25,
            min=0,
            max=100000,
            tooltip="show sample images of the concept and of a retained prompt on the node every N iterations "
            "(0: never)",
        ),
        advanced(
            io.String,
            "retain_prompts",
            default="",
            multiline=True,
            tooltip="your own retained prompts, one per line; they are added to retain_set",
        ),
        *(widget(ConceptConfig, name, fold=True) for name in CONCEPT_WIDGETS),
        *(widget(TrainConfig, name, fold=True) for name in TRAIN_WIDGETS),
        advanced(
            io.Combo,
            "dtype",
            options=[COMFYUI_DTYPE, *DTYPES],
            tooltip=f"dtype in which the UNet computes during training ({COMFYUI_DTYPE}: ComfyUI's choice); the "
            "trained weights are always float32",
        ),
        *(widget(AdversaryConfig, name, id=prefixed("attack_", name), fold=True) for name in ATTACK_WIDGETS),
        *(widget(BankConfig, name, id=prefixed("bank_", name), fold=True) for name in BANK_WIDGETS),
        # Optional, so that graphs that were saved before this setting existed still run.
        widget(AdversaryConfig, "inversion_tokens", id="attack_inversion_tokens", fold=True, optional=True),
    ]


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """Make the run configuration from the node's inputs, overridden by the chosen preset."""
    return RunConfig(
        **{
            section: settings(config, values, PREFIXES.get(section, ""), **preset_values(values["preset"], section))
            for section, config in SECTIONS.items()
        }
    )


def summary(run: RunConfig, result: Any, scope: str, memory_report: str, path: pathlib.Path) -> str:
    """Return the report of a finished run."""
    names = ", ".join(map(repr, run.concept.names))
    losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses[-1].items())
    return (
        f"{run.train.mode} on {names} ({run.concept.kind}): {result.iterations} iterations, seed {run.train.seed}\n"
        f"{scope}\nlast losses: {losses}\n{memory_report}\nsaved as {path}"
    )
