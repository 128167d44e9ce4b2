"""The models that can be trained: text-to-image models of Stable Diffusion 1.x and XL that predict noise or v.

Others are refused by name. What a file's tensors do not tell, its metadata or its name may: models distilled to a few
steps have the layout of the model they were made from, but images drawn in many steps with guidance are wrong.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

from ..errors import AdvUnlearnError
from .detect import SD1, SDXL, UNET_PREFIX, detect_checkpoint_kind
from .ldm_keys import VAE_PREFIX
from .sdxl_encoders import CLIP_G_PREFIX
from .text_encoders import find_encoder_prefixes
from .weights import Weights

FAMILIES = {SD1: "sd15", SDXL: "sdxl"}  # kind of a checkpoint -> folder of the shipped configurations
FAMILY_TITLES = {"sd15": "Stable Diffusion 1.x", "sdxl": "SDXL"}
TAKEN = "--model takes complete text-to-image checkpoints and diffusers folders of Stable Diffusion 1.x and XL"
USE_ORIGINAL = "use the text-to-image model it was made from"
# A file states what it predicts by these metadata keys (the model specification), or by a key `v_pred` (ComfyUI).
PREDICTION_KEYS = ("modelspec.predict_key", "modelspec.prediction_type")
V_PREDICTION_NAMES = ("v", "v_prediction", "v-prediction", "velocity")
NOISE_PREDICTION_NAMES = ("", "eps", "epsilon", "noise")
# Tensors that mark a checkpoint as a model with another noise schedule.
OTHER_SCHEDULES = {
    "edm_vpred.sigma_max": "for EDM's noise schedule (CosXL)",
    "edm_mean": "for EDM's noise schedule (Playground 2.5)",
}
# The guidance embedding of an LCM's UNet: in a checkpoint, in a file of the UNet alone, in diffusers' names.
GUIDANCE_EMBEDDINGS = (
    UNET_PREFIX + "time_embed.cond_proj.weight",
    "time_embed.cond_proj.weight",
    "time_embedding.cond_proj.weight",
)
TAKES_GUIDANCE = f"distilled for few steps (LCM), whose UNet takes the guidance scale as an input; {USE_ORIGINAL}"
# The methods by which a model is distilled to a few steps, in names of files and titles.
FEW_STEPS = r"(?i)turbo|lightning|(?<![a-z])(?:lcm|hyper|dmd2?|pcm|tcd)(?![a-z])"
FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")


def require_text_to_image(weights: Weights) -> str:
    """Return the family of a complete text-to-image checkpoint: 'sd15' or 'sdxl'.

    Raises AdvUnlearnError that says what the file is instead.
    """
    kind = detect_checkpoint_kind(weights.names, weights.shape)
    kind = describe_missing_parts(weights, kind) or kind
    if kind not in FAMILIES:
        found = kind or f"no Stable Diffusion checkpoint; its first tensor is {min(weights.names, default='nothing')!r}"
        made_from = any(kind.startswith(f"{family} for") for family in FAMILIES)
        raise AdvUnlearnError(f"{weights.source} is {found}; {TAKEN}" + (f": {USE_ORIGINAL}" if made_from else ""))
    if reason := _find_other_sampling(weights):
        raise AdvUnlearnError(f"{weights.source} is {kind} {reason}")
    require_undistilled(weights)
    return FAMILIES[kind]


def describe_missing_parts(weights: Weights, kind: str) -> str:
    """Return the description of a checkpoint that lacks a part, or of an encoder alone; "" for a complete one."""
    has_encoder = bool(find_encoder_prefixes(weights))
    if kind not in FAMILIES:
        return "" if kind or not has_encoder else "a CLIP text encoder alone"
    if not has_encoder:
        return f"{kind} without its text encoder"
    if kind == SDXL and not any(name.startswith(CLIP_G_PREFIX) for name in weights.names):
        return f"{kind} without its second text encoder (CLIP-G)"
    has_vae = any(name.startswith(VAE_PREFIX) for name in weights.names)
    return "" if has_vae else f"{kind} without its autoencoder"


def _find_other_sampling(weights: Weights) -> str:
    """Return why DDIM cannot sample a checkpoint by noise or v prediction, as the end of a sentence; "" if it can."""
    for name, schedule in OTHER_SCHEDULES.items():
        if name in weights.names:
            return f"{schedule}, and only the discrete schedule of 1000 steps is sampled here; {USE_ORIGINAL}"
    if _takes_guidance(weights):
        return TAKES_GUIDANCE
    for key in PREDICTION_KEYS:
        stated = weights.metadata.get(key, "")
        if stated.lower() not in (*NOISE_PREDICTION_NAMES, *V_PREDICTION_NAMES):
            return (
                f"that predicts {stated[:40]!r} ({key}); only noise and v are sampled here, not flow matching: "
                f"{USE_ORIGINAL}"
            )
    return ""


def _takes_guidance(weights: Weights) -> bool:
    return any(name in weights.names for name in GUIDANCE_EMBEDDINGS)


def require_undistilled(weights: Weights) -> None:
    """Raise AdvUnlearnError if the tensors, the name or the title of a file say that it is distilled to a few steps."""
    if _takes_guidance(weights):
        raise AdvUnlearnError(f"{weights.source} is a model {TAKES_GUIDANCE}")
    require_many_steps(weights.source, weights.metadata.get("modelspec.title", ""))


def require_many_steps(source: str, title: str = "") -> None:
    """Raise AdvUnlearnError if a model's file name or title says that it is distilled to a few steps.

    In the Hugging Face cache the name is that of the repository, models--OWNER--NAME.
    """
    parts = pathlib.PurePath(source).parts
    for text in (*parts[-1:], *(part for part in parts if part.startswith("models--")), title):
        if match := re.search(FEW_STEPS, text):
            raise AdvUnlearnError(
                f"{source} is named {match[0]!r}: a model distilled to a few steps without guidance, which training "
                f"and evaluation do not draw; {USE_ORIGINAL}: its trained text encoder fits this one too. If the name "
                "means something else, rename it"
            )


def require_schedule(config: Mapping[str, object], source: str) -> None:
    """Raise AdvUnlearnError for a diffusers scheduler's configuration that DDIM cannot stand in for.

    Args:
        config: content of scheduler_config.json.
        source: the model's name in messages.
    """
    name = str(config.get("_class_name", ""))
    if name in FEW_STEP_SCHEDULERS:
        raise AdvUnlearnError(
            f"model {source!r} has an {name}: it is distilled to a few steps without guidance; {USE_ORIGINAL}"
        )
    is_flow = "FlowMatch" in name or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if is_flow or "EDM" in name:
        what = "a flow-matching model" if is_flow else "a model of EDM's noise schedule"
        raise AdvUnlearnError(
            f"model {source!r} has the scheduler {name or 'of flow matching'}: it is {what}; only models that predict "
            "noise or v on the discrete schedule of 1000 steps are sampled here"
        )
