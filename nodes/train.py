"""Train a robust text encoder inside the graph."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..advunlearn.config import presets
from ..advunlearn.config.adversary import AdversaryConfig
from ..advunlearn.config.base import DTYPES
from ..advunlearn.config.concept import ConceptConfig
from ..advunlearn.config.presets import PRESETS
from ..advunlearn.config.training import BankConfig, TrainConfig
from ..advunlearn.errors import AdvUnlearnError, TrainingDiverged
from . import folders
from .widgets import advanced, file_name, output, resolution, schema, settings, widget

RETAIN = {
    "coco": "objects of COCO: a photo of a <class>",
    "imagenet": "the thousand classes of ImageNet, likewise",
    "miniature": "what the miniature can draw",
    "none": "nothing",
}
HOSTS_OWN = "default"
BANK = ("trajectories", "retain_trajectories", "sampling_steps", "guidance_scale")


class TrainAdvUnlearnEncoder(io.ComfyNode):
    """AdvUnlearn on the user's own MODEL and CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return schema(
            node_id="AdvUnlearnTrain",
            display_name="Train AdvUnlearn Encoder",
            description="Train the text encoder so that the model forgets a concept, also under adversarial prompts "
            "(Zhang et al., NeurIPS 2024). MODEL and CLIP stay as they are; the robust CLIP is a new one.",
            search_aliases=["unlearn", "erase concept", "adversarial training"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="a Stable Diffusion 1.x model; it is only read"),
                io.Clip.Input("clip", tooltip="the CLIP whose copy is trained"),
                widget(ConceptConfig, "concept", multiline=True),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    tooltip="custom: the settings below. The others take the published settings for Stable Diffusion "
                    "1.x in place of them; nudity brings its concept, object and style take yours",
                ),
                widget(ConceptConfig, "kind"),
                widget(TrainConfig, "mode", only=("advunlearn", "fast", "esd", "official")),
                widget(TrainConfig, "iterations"),
                widget(AdversaryConfig, "steps", id="attack_steps"),
                widget(TrainConfig, "lr"),
                io.Combo.Input(
                    "retain_set",
                    options=list(RETAIN),
                    tooltip="prompts that keep their meaning: " + "; ".join(f"{k}: {v}" for k, v in RETAIN.items()),
                ),
                widget(TrainConfig, "retain_weight"),
                widget(TrainConfig, "seed"),
                resolution("size of the pictures that training draws: the one the model was made for"),
                io.String.Input("save_name", default="robust_clip", tooltip="file name; it goes into output/clip"),
                io.Boolean.Input(
                    "resume",
                    default=False,
                    tooltip="go on with the run of this save_name that was "
                    "cancelled; it ends as if it had not been. All other settings must be the same",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="draws the sample pictures on the node; without one they are rough colours",
                ),
                advanced(
                    io.Int,
                    "sample_every",
                    default=25,
                    min=0,
                    max=100000,
                    tooltip="iterations between two sample "
                    "pictures on the node, of the concept and of a retained prompt; 0 for none",
                ),
                advanced(
                    io.String,
                    "retain_prompts",
                    default="",
                    multiline=True,
                    tooltip="your own retained prompts, one a line, beside those of retain_set",
                ),
                *(widget(ConceptConfig, n, fold=True) for n in ("negative_guidance", "schedule")),
                *(
                    widget(TrainConfig, n, fold=True)
                    for n in (
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
                ),
                advanced(
                    io.Combo,
                    "dtype",
                    options=[HOSTS_OWN, *DTYPES],
                    tooltip="what the UNet computes in while "
                    f"training: {HOSTS_OWN}, as ComfyUI chose, or another; what trains keeps float32 weights",
                ),
                *(
                    widget(AdversaryConfig, n, id="attack_" + n, fold=True)
                    for n in (
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
                ),
                *(widget(BankConfig, n, id="bank_" + n, fold=True) for n in BANK),
                widget(
                    AdversaryConfig, "inversion_tokens", id="attack_words", fold=True, optional=True
                ),  # saved graphs still run
            ],
            outputs=[
                io.Clip.Output("CLIP", tooltip="the robust CLIP, ready to wire"),
                output(io.String, "encoder_name", tooltip="its name in Load Robust CLIP"),
                output(io.LossMap, "loss_map", tooltip="the training loss, for the loss graph"),
                output(io.String, "report", tooltip="what was trained, how, and the last losses"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, save_name: str | None = None) -> bool | str:
        """Refuse a name that no file can have before anything is trained; None is a name that a link brings."""
        return save_name is None or file_name(save_name) or True

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any = None, **values: Any) -> io.NodeOutput:
        """Train, save, return the robust CLIP."""
        import torch

        from ..advunlearn.formats.text_encoders import export_state, save_encoder
        from ..advunlearn.training.checkpoint import Checkpoints
        from ..advunlearn.training.recipe import recipe_metadata
        from ..advunlearn.training.trainer import train
        from . import clip_l, host, memory, preview

        def chosen(config: type, prefix: str = "") -> Any:
            return settings(config, values, prefix, **presets.of(values["preset"], config))

        concept, config = chosen(ConceptConfig), chosen(TrainConfig)
        attack, bank = chosen(AdversaryConfig, "attack_"), chosen(BankConfig, "bank_")
        prompts = retained(values["retain_set"], values["retain_prompts"], concept)
        follow = preview.Training(cls.hidden.unique_id, config, attack, bank, bool(prompts) and config.retains)
        if wrong := file_name(values["save_name"]):
            raise AdvUnlearnError(wrong)
        keep = Checkpoints(folders.run_folder(values["save_name"]))
        dtype = None if values["dtype"] == HOSTS_OWN else getattr(torch, values["dtype"])
        # A run that was cancelled before its bank was full has no state: it begins anew.
        resume = values["resume"] and keep.exists()
        with host.gradients():
            original = host.text_to_image(model, clip, vae, values["resolution"], dtype)
            need = memory.check(original, prompts, concept=concept, attack=attack, train=config, bank=bank)
            if values["sample_every"]:
                follow.samples = preview.Samples(original, concept.prompts[0], prompts, values["sample_every"])
            try:
                result = train(
                    original, concept, attack, config, bank, prompts, follow, checkpoints=keep, resume=resume
                )
            except TrainingDiverged as error:
                path, listed = folders.new_path(values["save_name"] + "_last_good")
                save_encoder(path, error.result.encoder, {"advunlearn.error": str(error)})
                raise AdvUnlearnError(f"{error}. They are in {listed!r}") from error
            configs = {
                "concept": concept.to_dict(),
                "train": config.to_dict(),
                "attack": attack.to_dict(),
                "bank": bank.to_dict(),
            }
            metadata = recipe_metadata(original, concept, configs)
            path, listed = folders.new_path(values["save_name"])
            save_encoder(path, result.encoder, metadata)
            state = {k: v for k, v in export_state(result.encoder).items() if not k.startswith("text_projection")}
            robust = clip_l.with_encoder(clip, state, 1.0, "the trained encoder")
        keep.remove()  # only now: until the encoder is on disk the run can go on
        last = ", ".join(f"{k} {v:.4f}" for k, v in result.losses[-1].items())
        text = (
            f"{config.mode} on {', '.join(map(repr, concept.names))} ({concept.kind}): {result.iterations} iterations, "
            f"seed {config.seed}, {len(prompts)} retained prompts\nlast losses: {last}\n{need}\nsaved as {path}"
        )
        return io.NodeOutput(robust, listed, {"loss": [row["loss"] for row in result.losses]}, text)


def retained(name: str, own: str, concept: ConceptConfig) -> list[str]:
    """Return the user's own lines, and the retained prompts of a shipped set, but those that name the concept."""
    from ..advunlearn.evaluation.cases import retain_prompts
    from ..advunlearn.prompts import retain

    sets = {"none": list, "miniature": lambda: retain_prompts(concept)}
    shipped = sets[name]() if name in sets else retain.chosen(concept.names, name)
    return retain.mixed(retain.lines(own)) + shipped  # one's own first: a bank may not hold them all
