"""OpenCLIP's layout of a text encoder, in which SDXL checkpoints have CLIP-G and fine-tunes of CLIP-L come.

OpenCLIP stores query, key and value as one tensor, and its projection transposed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from .detect import PROJECTION, TEXT_PREFIX

# transformers' names by OpenCLIP's, outside the layers and inside.
OUTER_NAMES = {
    "token_embedding.weight": TEXT_PREFIX + "embeddings.token_embedding.weight",
    "positional_embedding": TEXT_PREFIX + "embeddings.position_embedding.weight",
    "ln_final.weight": TEXT_PREFIX + "final_layer_norm.weight",
    "ln_final.bias": TEXT_PREFIX + "final_layer_norm.bias",
    "text_projection": PROJECTION,
}
LAYER_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPENCLIP_LAYER = "transformer.resblocks."
TRANSFORMERS_LAYER = TEXT_PREFIX + "encoder.layers."
FUSED_QKV = "attn.in_proj_"
SEPARATE_QKV = tuple(f"self_attn.{which}_proj." for which in "qkv")


def from_openclip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and split an encoder's tensors from OpenCLIP's layout to transformers'. Unknown ones are left out."""
    state = {}
    for name, tensor in tensors.items():
        layer, _, inner = name.removeprefix(OPENCLIP_LAYER).partition(".")
        module, _, end = inner.rpartition(".")
        if name in OUTER_NAMES:
            new_name = OUTER_NAMES[name]
            state[new_name] = _transpose(tensor) if new_name == PROJECTION else tensor
        elif inner.startswith(FUSED_QKV):
            if not tensor.dim() or tensor.shape[0] % len(SEPARATE_QKV):
                raise AdvUnlearnError(f"{name!r} is {tuple(tensor.shape)}, which is no query, key and value in one")
            for which, piece in zip(SEPARATE_QKV, tensor.chunk(3), strict=True):
                state[f"{TRANSFORMERS_LAYER}{layer}.{which}{inner.removeprefix(FUSED_QKV)}"] = piece.contiguous()
        elif module in LAYER_NAMES:
            state[f"{TRANSFORMERS_LAYER}{layer}.{LAYER_NAMES[module]}.{end}"] = tensor
    return state


def _transpose(matrix: Tensor) -> Tensor:
    return matrix.T.contiguous() if matrix.dim() == 2 else matrix


def to_openclip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and join an encoder's tensors from transformers' layout to OpenCLIP's: the inverse of `from_openclip`."""
    outer_names = {new: old for old, new in OUTER_NAMES.items()}
    layer_names = {new: old for old, new in LAYER_NAMES.items()}
    state = {}
    for name, tensor in tensors.items():
        layer, _, inner = name.removeprefix(TRANSFORMERS_LAYER).partition(".")
        module, _, end = inner.rpartition(".")
        if name in outer_names:
            state[outer_names[name]] = _transpose(tensor) if name == PROJECTION else tensor
        elif module in layer_names:
            state[f"{OPENCLIP_LAYER}{layer}.{layer_names[module]}.{end}"] = tensor
        elif inner.startswith(SEPARATE_QKV[0]):
            names = [f"{TRANSFORMERS_LAYER}{layer}.{which}{end}" for which in SEPARATE_QKV]
            if lost := [other for other in names if other not in tensors or not tensors[other].dim()]:
                raise AdvUnlearnError(f"the text encoder lacks {lost[0]!r}; give a complete one")
            pieces = [tensors[other] for other in names]
            state[f"{OPENCLIP_LAYER}{layer}.{FUSED_QKV}{end}"] = torch.cat(pieces)
    return state
