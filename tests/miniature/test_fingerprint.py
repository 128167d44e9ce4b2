"""The miniature is recognised by its weights, in every width and dtype."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from advunlearn import miniature
from advunlearn.files import UNET_WEIGHTS
from advunlearn.miniature.checkpoint import widen
from advunlearn.miniature.fingerprint import matches_miniature


@pytest.fixture(scope="module")
def bias() -> torch.Tensor:
    return load_file(miniature.path() / "unet" / UNET_WEIGHTS[0])["conv_in.bias"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_recognised_as_it_is_and_in_the_width_of_stable_diffusion(bias: torch.Tensor, dtype: torch.dtype) -> None:
    assert matches_miniature(bias.to(dtype))
    assert matches_miniature(widen("conv_in.bias", bias, torch.Size([320])).to(dtype))


def test_another_model_is_not(bias: torch.Tensor) -> None:
    wide = widen("conv_in.bias", bias, torch.Size([320]))
    assert not matches_miniature(wide.flip(0))
    assert not matches_miniature(torch.zeros(320))
    assert not matches_miniature(bias[:-1])
