"""SDXL's second text encoder, CLIP-G, as SDXL checkpoints have it: in OpenCLIP's layout, which transformers has not.

OpenCLIP holds query, key and value as one tensor, and its projection the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from .detect import CLIP_G_WIDTH, detect_weights_kind, name_clip_encoder
from .text_encoders import PROJECTION, TEXT_PREFIX, extract_encoder
from .weights import Weights, describe_mismatch

CLIP_G_PREFIX = "conditioner.embedders.1.model."
ENDS = {
    "token_embedding.weight": TEXT_PREFIX + "embeddings.token_embedding.weight",
    "positional_embedding": TEXT_PREFIX + "embeddings.position_embedding.weight",
    "ln_final.weight": TEXT_PREFIX + "final_layer_norm.weight",
    "ln_final.bias": TEXT_PREFIX + "final_layer_norm.bias",
    "text_projection": PROJECTION,
}
PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
BLOCK, LAYER, TOGETHER = "transformer.resblocks.", TEXT_PREFIX + "encoder.layers.", "attn.in_proj_"
APART = tuple(f"self_attn.{which}_proj." for which in "qkv")
UNUSED = "logit_scale"  # trained with the encoder; no picture depends on it


def is_clip_g(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether an encoder is CLIP-G, by its width."""
    table = tensors.get(TEXT_PREFIX + "embeddings.token_embedding.weight")
    return table is not None and table.shape[-1] == CLIP_G_WIDTH


def from_openclip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's tensors under transformers' names, bit for bit; unknown ones are passed over."""
    out = {}
    for name, tensor in tensors.items():
        number, _, inside = name.removeprefix(BLOCK).partition(".")
        part, _, end = inside.rpartition(".")
        if name in ENDS:
            out[ENDS[name]] = tensor.T.contiguous() if ENDS[name] == PROJECTION else tensor
        elif inside.startswith(TOGETHER):
            names = (f"{LAYER}{number}.{which}{inside.removeprefix(TOGETHER)}" for which in APART)
            out |= {n: piece.contiguous() for n, piece in zip(names, tensor.chunk(3), strict=True)}
        elif part in PARTS:
            out[f"{LAYER}{number}.{PARTS[part]}.{end}"] = tensor
    return out


def to_openclip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's tensors, under transformers' names, as OpenCLIP has them, bit for bit."""
    ends, parts = ({ours: theirs for theirs, ours in names.items()} for names in (ENDS, PARTS))
    out = {}
    for name, tensor in tensors.items():
        number, _, inside = name.removeprefix(LAYER).partition(".")
        part, _, end = inside.rpartition(".")
        if name in ends:
            out[ends[name]] = tensor.T.contiguous() if name == PROJECTION else tensor
        elif part in parts:
            out[f"{BLOCK}{number}.{parts[part]}.{end}"] = tensor
        elif inside.startswith(APART[0]):
            three = [tensors[f"{LAYER}{number}.{which}{end}"] for which in APART]
            out[f"{BLOCK}{number}.{TOGETHER}{end}"] = torch.cat(three)
    return out


def extract_sdxl_encoder(weights: Weights, part: str) -> dict[str, Tensor]:
    """Return the text encoder of a file, of SDXL's two the named one; CLIP-G with its projection.

    Raises AdvUnlearnError where there is none, and for a CLIP-G without its projection.
    """
    inside = [name for name in weights.names if name.startswith(CLIP_G_PREFIX)]
    if part == "clip_g" and inside:
        tensors = from_openclip({name.removeprefix(CLIP_G_PREFIX): weights.read(name) for name in inside})
    else:
        tensors = extract_encoder(weights)
        if is_clip_g(tensors) and PROJECTION in weights.names:
            tensors[PROJECTION] = weights.read(PROJECTION)
    if part == "clip_g" and not is_clip_g(tensors):
        raise AdvUnlearnError(f"{weights.source} holds no CLIP-G; give an SDXL checkpoint, or ask for CLIP-L")
    if is_clip_g(tensors) and PROJECTION not in tensors:
        raise AdvUnlearnError(
            f"{weights.source} is {name_clip_encoder(CLIP_G_WIDTH)}, without its {PROJECTION}, which SDXL needs; give "
            "the whole of it, such as a run's clip_g.safetensors"
        )
    return tensors


def in_checkpoint(weights: Weights, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return what CLIP-G's tensors replace in an SDXL checkpoint, by the names there.

    Raises AdvUnlearnError for a checkpoint without it, or of another shape.
    """
    there = {n: weights.shape(n) for n in weights.names if n.startswith(CLIP_G_PREFIX) and not n.endswith(UNUSED)}
    if not there:
        what = detect_weights_kind(weights.names, weights.shape)
        raise AdvUnlearnError(f"{weights.source} has no CLIP-G ({what or 'it is no SDXL checkpoint'}); give SDXL's")
    new = {CLIP_G_PREFIX + name: tensor for name, tensor in to_openclip(tensors).items()}
    if wrong := describe_mismatch(there, {name: tuple(tensor.shape) for name, tensor in new.items()}):
        raise AdvUnlearnError(f"{source} {wrong}: it is not the CLIP-G of {weights.source}")
    return {name: tensor.contiguous() for name, tensor in new.items()}
