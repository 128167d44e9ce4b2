"""Pictures of prompts, and what a judge sees in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.evaluation import EvaluateConfig
from ..judges.base import Judge, JudgeOutput
from ..models.ddim import ddim_sample, scale_batch
from ..models.loading import TextToImage
from .measurement import Subject

OnPictures = Callable[[str, Tensor], Sequence[str]]  # what they are of, (N, 3, H, W) -> where each is kept


class ImageGenerator:
    """Draws with a subject's encoder and denoiser, and has a judge look for the labels of one concept or several."""

    on_pictures: OnPictures | None = None  # keeps pictures; without it nothing keeps them

    def __init__(self, model: TextToImage, judge: Judge, labels: Sequence[str], config: EvaluateConfig) -> None:
        self.model, self.judge, self.labels, self.config = model, judge, list(labels), config

    def generate(self, subject: Subject, context: Tensor, noise: Tensor) -> Tensor:
        """Return final latents (N, C, h, w) for a conditioning (N, L, D), guided against the subject's empty prompt."""
        empty = self.model.encode([""], subject.encoder)
        size = scale_batch(128, noise)
        parts = zip(context.split(size), noise.split(size), strict=True)
        steps, scale = self.config.sampling_steps, self.config.guidance_scale
        return torch.cat([ddim_sample(subject.denoiser, c, empty, z, steps, scale) for c, z in parts])

    def look(self, images: Tensor) -> JudgeOutput:
        """Judge pictures (N, 3, H, W)."""
        return self.judge.look(images, self.labels[0])

    def hits(self, images: Tensor) -> Tensor:
        """Return which pictures show the concept, or any of several (N,)."""
        return torch.stack([self.judge.look(images, label).shows(label) for label in self.labels]).any(0)

    def pictures(self, subject: Subject, context: Tensor, noise: Tensor) -> Tensor:
        """Draw a conditioning (N, L, D): pictures (N, 3, H, W) in [0, 1], on the CPU as the judge is."""
        return self.model.decode(self.generate(subject, context, noise)).cpu()

    def drawn(self, subject: Subject, prompts: Sequence[str], noise: Tensor) -> Tensor:
        """Draw prompts."""
        return self.pictures(subject, self.model.encode(prompts, subject.encoder), noise)

    def asked(self, prompts: Sequence[str], seeds: Sequence[int | None]) -> list[dict[str, Any]]:
        """Return a row for each picture: the evaluation's seed, or one of the noise's own, and the prompt."""
        seed = self.config.seed
        return [
            {"case": case, "seed": seed, "prompt": prompt} | ({} if own is None else {"noise_seed": own})
            for case, (prompt, own) in enumerate(zip(prompts, seeds, strict=True))
        ]

    def kept(self, what: str, images: Tensor, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return rows of pictures (N, 3, H, W) with where each is kept."""
        if self.on_pictures is None or not len(images):
            return list(rows)
        return [row | {"picture": path} for row, path in zip(rows, self.on_pictures(what, images), strict=True)]
