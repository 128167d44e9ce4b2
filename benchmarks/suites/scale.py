"""An iteration of Stable Diffusion 1.5's shape: its time compared with its bare UNet passes.

The weights are random; the arithmetic is the same. The resolution is 256 pixels, because 512 would take a quarter of an
hour on two cores; there the UNet passes take more than four times as long, and the overhead does not grow.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.training import BankConfig, TrainConfig
from advunlearn.models.counting import count_forwards
from advunlearn.models.placement import best_device
from advunlearn.training.bank import TrajectoryBank

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
        repeats: both run a third as often, but at least once, because their passes take seconds.
        device: the device; empty for the first available.
        work: the settings of an iteration.
        model, resolution: the shape of the model, and the image size in pixels.

    Returns:
        `overhead_over_bare_passes` as in the iteration suite, without the renewal of the bank.
    """
    made = random_model(model, resolution, torch.float32, torch.device(device or best_device()))
    made = replace(made, denoiser=count_forwards(made.denoiser))
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
