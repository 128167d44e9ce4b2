"""Recognise the miniature by its weights, whatever file or host they come from."""

from __future__ import annotations

import functools

import torch
from safetensors import safe_open
from torch import Tensor

from ..files import UNET_WEIGHTS
from . import path

RESOLUTION = 64  # of its images, in pixels


def matches_miniature(conv_in_bias: Tensor) -> bool:
    """Return whether a UNet is the miniature's, also in the width of Stable Diffusion 1.5.

    Args:
        conv_in_bias: (C,) bias of the UNet's first convolution, in any dtype. LoRAs leave it as it is.
    """
    narrow = _read_conv_in_bias()
    factor, rest = divmod(len(conv_in_bias), len(narrow))
    if rest:
        return False
    # The tolerance is that of bfloat16, the coarsest dtype in which a UNet is kept.
    return torch.allclose(conv_in_bias.detach().float().cpu(), narrow.repeat_interleave(factor), rtol=0.01, atol=1e-5)


@functools.cache
def _read_conv_in_bias() -> Tensor:
    with safe_open(path() / "unet" / UNET_WEIGHTS[0], "pt") as weights:
        return weights.get_tensor("conv_in.bias").float()
