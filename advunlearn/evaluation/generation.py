"""Generate images of prompts and have them judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config.evaluation import EvaluateConfig
from ..judges.base import Judge, JudgeOutput
from ..models.ddim import ddim_sample, scale_batch
from ..models.denoiser import Denoiser
from ..models.loading import TextToImage
from .metrics import Row

SaveImages = Callable[[str, Tensor], Sequence[str]]  # (what they are of, (N, 3, H, W)) -> N file names


@dataclass(frozen=True)
class Subject:
    """The evaluated model: a text encoder and a denoiser, either of which may be the original one."""

    encoder: Any
    denoiser: Denoiser


class ImageGenerator:
    """Generates images with a subject, and has a judge look for one concept or several.

    Args:
        model: the original model, whose tokenizer and autoencoder are used.
        judge: judges the images.
        labels: the judge's labels of the concepts.
        config: sampling steps, guidance scale and seed.
    """

    save_images: SaveImages | None = None  # None: images are not saved

    def __init__(self, model: TextToImage, judge: Judge, labels: Sequence[str], config: EvaluateConfig) -> None:
        self.model = model
        self.judge = judge
        self.labels = list(labels)
        self.config = config

    def generate_latents(self, subject: Subject, conditioning: Tensor, noise: Tensor) -> Tensor:
        """Return final latents (N, C, h, w) for a conditioning (N, L, D), guided against the subject's empty prompt."""
        empty = self.model.encode([""], subject.encoder)
        size = scale_batch(128, noise)
        parts = zip(conditioning.split(size), noise.split(size), strict=True)
        steps = self.config.sampling_steps
        scale = self.config.guidance_scale
        return torch.cat([ddim_sample(subject.denoiser, c, empty, z, steps, scale) for c, z in parts])

    def generate_images(self, subject: Subject, conditioning: Tensor, noise: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [0, 1] for a conditioning (N, L, D), on the CPU, where the judge is."""
        return self.model.decode(self.generate_latents(subject, conditioning, noise)).cpu()

    def generate_from_prompts(self, subject: Subject, prompts: Sequence[str], noise: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [0, 1] of N prompts, on the CPU."""
        return self.generate_images(subject, self.model.encode(prompts, subject.encoder), noise)

    def judge_images(self, images: Tensor) -> JudgeOutput:
        """Judge images (N, 3, H, W)."""
        return self.judge.look(images, self.labels[0])

    def detect_concept(self, images: Tensor) -> Tensor:
        """Return which images (N, 3, H, W) show the concept, or any of several, (N,) bool."""
        return torch.stack([self.judge.look(images, label).shows(label) for label in self.labels]).any(0)

    def make_rows(self, prompts: Sequence[str], seeds: Sequence[int | None]) -> list[Row]:
        """Return a row per image: its prompt, the evaluation's seed, and the seed of its noise if it has its own."""
        rows: list[Row] = []
        for case, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            row = {"case": case, "seed": self.config.seed, "prompt": prompt}
            rows.append(row if seed is None else row | {"noise_seed": seed})
        return rows

    def save_rows(self, what: str, images: Tensor, rows: Sequence[Row]) -> list[Row]:
        """Save the images (N, 3, H, W) of N rows; return the rows with the images' file names."""
        if self.save_images is None or not len(images):
            return list(rows)
        names = self.save_images(what, images)
        return [row | {"picture": name} for row, name in zip(rows, names, strict=True)]
