"""Encoders of other models in their true layouts, and a comparison of tensors bit for bit."""

from __future__ import annotations

import torch

from advunlearn.formats.inspect import is_bit_equal

Tensors = dict[str, torch.Tensor]


def is_same(a: Tensors, b: Tensors) -> bool:
    """Return whether two sets of tensors have the same names, dtypes and bits."""
    return a.keys() == b.keys() and all(is_bit_equal(a[k], b[k]) for k in a)


def transformers_layout(width: int, layers: int, prefix: str = "text_model.") -> Tensors:
    """Return an encoder's norms at their true shapes; the large matrices are left out."""
    norms = [f"encoder.layers.{k}.layer_norm{n}.{w}" for k in range(layers) for n in (1, 2) for w in ("weight", "bias")]
    norms += ["final_layer_norm.weight", "final_layer_norm.bias"]
    return {prefix + name: torch.zeros(width) for name in norms}


def openclip_layout(width: int, layers: int, prefix: str = "") -> Tensors:
    """Return the same in OpenCLIP's layout."""
    norms = [f"transformer.resblocks.{k}.ln_{n}.weight" for k in range(layers) for n in (1, 2)]
    return {prefix + name: torch.zeros(width) for name in [*norms, "ln_final.weight", "ln_final.bias"]}


def t5_layout(prefix: str = "") -> Tensors:
    """Return T5-XXL's norms."""
    names = [f"encoder.block.{k}.layer.0.SelfAttention.relative_attention_bias.weight" for k in range(1)]
    names += [f"encoder.block.{k}.layer.0.layer_norm.weight" for k in range(24)]
    return {prefix + name: torch.zeros(4096) for name in names}
