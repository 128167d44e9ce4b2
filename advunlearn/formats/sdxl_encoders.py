"""The two text encoders of an SDXL checkpoint: read either one, and write a CLIP-G in its place."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import AdvUnlearnError
from .detect import CLIP_G_WIDTH, PROJECTION, TEXT_PREFIX, detect_weights_kind, get_size, name_clip_encoder
from .ldm_keys import CLIP_G_PREFIX
from .openclip import from_openclip, to_openclip
from .text_encoders import extract_encoder
from .weights import Weights, describe_mismatch, get_shapes

UNUSED = "logit_scale"  # trained with the encoder; image generation does not use it


def is_clip_g(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether an encoder is CLIP-G, by its width."""
    table = tensors.get(TEXT_PREFIX + "embeddings.token_embedding.weight")
    return table is not None and get_size(table.shape, -1) == CLIP_G_WIDTH


def extract_sdxl_encoder(weights: Weights, name: str) -> dict[str, Tensor]:
    """Return the text encoder of a file; of the two in an SDXL checkpoint the one named 'clip_l' or 'clip_g'.

    CLIP-G comes with its projection. Raises AdvUnlearnError for a file without that encoder, and for a CLIP-G without
    its projection.
    """
    stored = [n for n in weights.names if n.startswith(CLIP_G_PREFIX)]
    if name == "clip_g" and stored:
        tensors = from_openclip({n.removeprefix(CLIP_G_PREFIX): weights.read(n) for n in stored})
    else:
        tensors = extract_encoder(weights)
        if is_clip_g(tensors) and PROJECTION in weights.names:
            tensors[PROJECTION] = weights.read(PROJECTION)
    if name == "clip_g" and not is_clip_g(tensors):
        raise AdvUnlearnError(f"{weights.source} holds no CLIP-G; give an SDXL checkpoint, or ask for CLIP-L")
    if is_clip_g(tensors) and PROJECTION not in tensors:
        raise AdvUnlearnError(
            f"{weights.source} is {name_clip_encoder(CLIP_G_WIDTH)}, without its {PROJECTION}, which SDXL needs; give "
            "the complete encoder, such as a run's clip_g.safetensors"
        )
    return tensors


def build_clip_g_replacement(weights: Weights, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors that replace CLIP-G in an SDXL checkpoint, by their names there.

    Raises AdvUnlearnError for a checkpoint without CLIP-G, or with one of another shape.
    """
    names = [name for name in weights.names if name.startswith(CLIP_G_PREFIX) and not name.endswith(UNUSED)]
    if not names:
        kind = detect_weights_kind(weights.names, weights.shape) or "it is not an SDXL checkpoint"
        raise AdvUnlearnError(f"{weights.source} has no CLIP-G ({kind}); give an SDXL checkpoint")
    replacement = {CLIP_G_PREFIX + name: tensor.contiguous() for name, tensor in to_openclip(tensors).items()}
    if wrong := describe_mismatch({name: weights.shape(name) for name in names}, get_shapes(replacement)):
        raise AdvUnlearnError(f"{source} {wrong}: it is not the CLIP-G of {weights.source}")
    return replacement
