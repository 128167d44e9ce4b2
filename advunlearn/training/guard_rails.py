"""Warnings about settings that rarely work. They do not stop a run; they belong into its log and its report."""

from __future__ import annotations

from ..config.training import RunConfig
from ..models.loading import TextToImage
from ..models.text_encoder import embedding_table

FULL_SIZE = 768  # hidden size of CLIP-L
LARGEST_LR = 5e-5
LARGEST_FACTOR = 1.5  # between the resolution of a run and the model's own


def find_warnings(
    model: TextToImage, run: RunConfig, retain_set: str, is_miniature: bool, own_resolution: int = 0
) -> list[str]:
    """Return one sentence for each setting that is far from what the model needs.

    Args:
        model: the original model.
        run: the settings.
        retain_set: name of the shipped retain set.
        is_miniature: whether the model is the miniature, also in the shape of Stable Diffusion 1.5.
        own_resolution: size of the images that the model was made for, in pixels (0: the size of this run).
    """
    warnings = []
    full_size = embedding_table(model.text_encoder).shape[1] >= FULL_SIZE
    if full_size and not is_miniature and not run.train.unet_method and run.train.lr > LARGEST_LR:
        warnings.append(
            f"lr is {run.train.lr:g}, which is high for a text encoder of full size: the published value is 1e-05, and "
            f"more than {LARGEST_LR:g} tends to damage other concepts; lower lr"
        )
    resolution = 8 * model.denoiser.latent_shape[-1]
    if own_resolution and not own_resolution / LARGEST_FACTOR <= resolution <= own_resolution * LARGEST_FACTOR:
        warnings.append(
            f"resolution is {resolution}, but the model was made for images of {own_resolution} pixels and may draw "
            f"none of the concept at another size; use {own_resolution}"
        )
    if retain_set == "miniature" and not is_miniature:
        warnings.append(
            "the retain set miniature has the prompts of the 64-pixel miniature, which say little about this model; "
            "use retain_set coco or imagenet"
        )
    if run.train.attacks and not run.train.retain_weight:
        warnings.append("retain_weight is 0: nothing keeps other concepts as they are; use 0.3 to 2")
    return warnings
