"""The miniature: a small, complete latent diffusion model shipped with the library, its judge and captions."""

from __future__ import annotations

import pathlib


def path() -> pathlib.Path:
    """Return the miniature's diffusers folder; `StableDiffusionPipeline.from_pretrained(path())` loads it."""
    return pathlib.Path(__file__).parent / "model"


def judge_path() -> pathlib.Path:
    """Return the folder of the miniature's judge, for `ConvJudge.from_pretrained`."""
    return pathlib.Path(__file__).parent / "judge"
