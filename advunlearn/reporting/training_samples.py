"""What a model in training draws, from the same noise every time, so that one sees it forget."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..config.evaluation import EvaluateConfig
from ..models.ddim import ddim_sample
from ..models.denoiser import Denoiser
from ..models.loading import TextToImage
from .images import overview

COUNT, SEED, SIDE = 2, 0, 128  # pictures of a prompt, the seed of their noise, their least size in pixels


class Samples:
    """Draws a row of pictures for each prompt, with noise of its own: no other random draw is touched.

    Args:
        model: the original model; what is in training is given to `draw`.
        prompts: a row each.
        config: how they are sampled.
    """

    def __init__(self, model: TextToImage, prompts: Sequence[str], config: EvaluateConfig | None = None) -> None:
        self.model, self.prompts, self.config = model, list(prompts), config or EvaluateConfig()
        shape = (COUNT, *model.denoiser.latent_shape)
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))

    @torch.no_grad()
    def latents(self, encoder: Any, denoiser: Denoiser) -> Tensor:
        """Return what an encoder and a denoiser draw (P * COUNT, C, h, w), prompt by prompt."""
        steps, scale = self.config.sampling_steps, self.config.guidance_scale
        noise, empty = self.noise.to(denoiser.device), self.model.encode([""], encoder)
        contexts = self.model.encode([p for p in self.prompts for _ in range(COUNT)], encoder).split(COUNT)
        return torch.cat([ddim_sample(denoiser, context, empty, noise, steps, scale) for context in contexts])

    def draw(self, encoder: Any, denoiser: Denoiser) -> Image.Image:
        """Return the pictures, a row for each prompt."""
        rows = self.model.decode(self.latents(encoder, denoiser)).split(COUNT)
        names = ("\n".join(textwrap.wrap(prompt, 20)[:3]) for prompt in self.prompts)
        return overview(dict(zip(names, rows, strict=True)), max(1, SIDE // rows[0].shape[-1]))
