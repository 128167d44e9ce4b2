"""Inverted latents: the noise from which DDIM generates an image again."""

from __future__ import annotations

import pathlib
import runpy

import pytest
import torch

from advunlearn.models.ddim import ddim_sample
from advunlearn.models.loading import TextToImage

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


def test_sampling_from_inverted_latents_returns_to_the_image(
    model: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    invert_latents = runpy.run_path(str(FOLDER / "inverted_latents.py"))["invert_latents"]
    noise = torch.randn(2, *model.denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    empty = model.encode([""]).detach()
    image = ddim_sample(model.denoiser, model.encode(["a church", "a dog"]).detach(), empty, noise, 10, 3.0)
    distance = {}
    for iterations in (1, 8):
        start = invert_latents(model.denoiser, empty, image, 10, iterations)
        again = ddim_sample(model.denoiser, empty.expand(2, -1, -1), empty, start, 10, 3.0)
        distance[iterations] = (again - image).square().mean().sqrt().item() / image.std().item()
    # The control: the noise of the image itself, and one iteration per step, do not return.
    other = ddim_sample(model.denoiser, empty.expand(2, -1, -1), empty, noise, 10, 3.0)
    assert (other - image).square().mean().sqrt() > 0.3 * image.std()
    assert distance[8] < 0.05 < distance[1], distance
