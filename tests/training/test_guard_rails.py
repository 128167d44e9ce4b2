"""Warnings about settings that rarely work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from advunlearn.config.training import RunConfig
from advunlearn.models.loading import TextToImage
from advunlearn.training.guard_rails import find_warnings


@pytest.fixture(scope="module")
def full_size(model: TextToImage) -> TextToImage:
    """The miniature with a text encoder as wide as CLIP-L's, of one layer."""
    config = CLIPTextConfig(hidden_size=768, intermediate_size=16, num_hidden_layers=1, vocab_size=8)
    with torch.device("meta"):
        return replace(model, text_encoder=CLIPTextModel(config))


@pytest.mark.parametrize(
    ("train", "retain_set", "expected"),
    [
        ({"lr": 2e-4}, "coco", ["lr is 0.0002"]),
        ({"lr": 5e-5}, "coco", []),
        ({"lr": 2e-4, "train_method": "xattn"}, "coco", []),
        ({"lr": 1e-5}, "miniature", ["the retain set miniature"]),
        ({"lr": 1e-5, "retain_weight": 0.0}, "coco", ["retain_weight is 0"]),
        ({"lr": 1e-5, "retain_weight": 0.0, "mode": "esd"}, "coco", []),
    ],
)
def test_unusual_settings_are_named(
    full_size: TextToImage, train: dict[str, object], retain_set: str, expected: list[str]
) -> None:
    warnings = find_warnings(full_size, RunConfig().replace(train=train), retain_set, is_miniature=False)
    assert len(warnings) == len(expected)
    assert all(warning.startswith(start) for warning, start in zip(warnings, expected, strict=True))


def test_the_miniature_may_have_its_own_settings(model: TextToImage, full_size: TextToImage) -> None:
    for miniature in (model, full_size):
        assert find_warnings(miniature, RunConfig(), "miniature", is_miniature=True) == []


@pytest.mark.parametrize(
    ("own", "expected"), [(0, 0), (64, 0), (96, 0), (43, 0), (97, 1), (42, 1)]
)  # the run's images have 64 pixels
def test_a_resolution_far_from_the_models_own_is_named(model: TextToImage, own: int, expected: int) -> None:
    warnings = find_warnings(model, RunConfig(), "miniature", is_miniature=True, own_resolution=own)
    assert len(warnings) == expected
    assert all(f"resolution is 64, but the model was made for images of {own} pixels" in text for text in warnings)
