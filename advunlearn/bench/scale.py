"""Models of the size that people use: what an iteration of Stable Diffusion 1.5's shape takes beside its bare passes.

Random weights: the arithmetic is the same. At 256 pixels, since 512 would take two cores a quarter of an hour; there
the UNet's passes take over four times as long, and what comes on top of them no longer.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch

from ..config.adversary import AdversaryConfig
from ..config.training import BankConfig, TrainConfig
from ..models.counting import counting
from ..models.loading import best_device
from ..training.bank import TrajectoryBank
from .iteration import Work, bare, ours_and_bare, sampled, spread
from .memory import random_model

SHAPE = Work(
    AdversaryConfig(steps=8, restarts=1),
    TrainConfig(warmup=0, batch=1, retain_batch=1, clean_share=0.0),
    BankConfig(trajectories=1, retain_trajectories=1, sampling_steps=2),
)


def measure(
    repeats: int = 3, device: str = "", work: Work = SHAPE, model: str = "sd15", resolution: int = 256
) -> dict[str, Any]:
    """Measure the suite.

    Args:
        repeats: a third as often both run, since their passes take seconds; at least once.
        device: where; empty for the first that is there.
        work: an iteration's settings.
        model, resolution: whose shape, at how many pixels.

    Returns:
        `overhead_over_bare_passes` as in the iteration suite, without the renewal of the bank.
    """
    made = random_model(model, resolution, torch.float32, torch.device(device or best_device()))
    made = replace(made, denoiser=counting(made.denoiser))
    banks, _ = sampled(made, TrajectoryBank, work)
    bare(made, work)
    pairs = [ours_and_bare(made, banks, work) for _ in range(max(1, repeats // 3))]
    overheads = [ours.seconds / alone for ours, alone in pairs]
    return {
        "overhead_over_bare_passes": statistics.median(overheads),
        "parts": {"overhead": spread(overheads), "forward_equivalents": pairs[-1][0].forwards},
        "settings": {
            "model": model,
            "resolution": resolution,
            "attack": work.attack.to_dict(),
            "train": work.train.to_dict(),
            "repeats": repeats,
        },
    }
