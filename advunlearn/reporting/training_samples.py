"""Sample images of a model in training, always from the same noise, so that its forgetting is visible."""

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

COUNT = 2  # images per prompt, by default
SEED = 0  # of their noise
SIDE = 128  # minimum size of an image in pixels


class Samples:
    """Generates a row of images for each prompt. Has its own noise: other random draws are not affected.

    Args:
        model: the original model; the model in training is an argument of `draw`.
        prompts: one row each.
        config: sampling steps and guidance scale.
        count: images per prompt.
    """

    def __init__(
        self, model: TextToImage, prompts: Sequence[str], config: EvaluateConfig | None = None, count: int = COUNT
    ) -> None:
        self.model = model.fit_prompts(prompts)
        self.count = count
        self.prompts = list(prompts)
        self.config = config or EvaluateConfig()
        shape = (count, *model.denoiser.latent_shape)
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))

    @torch.no_grad()
    def latents(self, encoder: Any, denoiser: Denoiser) -> Tensor:
        """Return the latents (P * count, C, h, w) of an encoder and a denoiser, prompt by prompt."""
        steps = self.config.sampling_steps
        scale = self.config.guidance_scale
        noise = self.noise.to(denoiser.device)
        empty = self.model.encode([""], encoder)
        contexts = self.model.encode([p for p in self.prompts for _ in range(self.count)], encoder).split(self.count)
        return torch.cat([ddim_sample(denoiser, context, empty, noise, steps, scale) for context in contexts])

    def draw(self, encoder: Any, denoiser: Denoiser) -> Image.Image:
        """Return the images, a row for each prompt."""
        rows = self.model.decode(self.latents(encoder, denoiser)).split(self.count)
        names = ("\n".join(textwrap.wrap(prompt, 20)[:3]) for prompt in self.prompts)
        return overview(dict(zip(names, rows, strict=True)), max(1, SIDE // rows[0].shape[-1]))
