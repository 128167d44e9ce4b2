"""What a model in training draws, from the same noise every time, so that one sees it forget."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ..config import EvaluateConfig
from ..denoisers import Denoiser
from ..models import TextToImage
from ..sampling import ddim_sample
from .pictures import overview

COUNT, SEED, SIDE = 2, 0, 128  # pictures of a prompt, the seed of their noise, their least size in pixels


class Samples:
    """Draws a row of pictures for each prompt, with noise of its own: no other random draw is touched.

    Args:
        model: the original model; what is in training is given to `draw`.
        prompts: a row each.
    """

    def __init__(self, model: TextToImage, prompts: Sequence[str]) -> None:
        self.model, self.prompts, self.config = model, list(prompts), EvaluateConfig()
        shape = (COUNT, *model.denoiser.latent_shape)
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))

    @torch.no_grad()
    def draw(self, encoder: Any, denoiser: Denoiser) -> Image.Image:
        """Return the pictures that an encoder and a denoiser draw, prompt by prompt."""
        noise, empty = self.noise.to(denoiser.device), self.model.encode([""], encoder)
        rows = {}
        for prompt in self.prompts:
            context = self.model.encode([prompt] * COUNT, encoder)
            steps, scale = self.config.sampling_steps, self.config.guidance_scale
            images = self.model.decode(ddim_sample(denoiser, context, empty, noise, steps, scale))
            rows["\n".join(textwrap.wrap(prompt, 20)[:3])] = images
        return overview(rows, max(1, SIDE // images.shape[-1]))
