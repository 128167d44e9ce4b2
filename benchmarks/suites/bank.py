"""The trajectory bank: its size, and the cost of filling it."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import torch

from advunlearn.config.training import BankConfig
from advunlearn.memory.plan import GIB
from advunlearn.models.counting import count_forwards
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.placement import best_device
from advunlearn.training.bank import TrajectoryBank

from .clock import now
from .iteration import PUBLISHED, Work, sampled, spread

TRAJECTORIES = 443  # the published run: class names of COCO and ImageNet, and the concept
SD15 = (4, 64, 64)


def size_of(config: BankConfig, latent_shape: tuple[int, ...] = SD15) -> float:
    """Return the size in GiB of the latents and predictions of a bank; retained prompts have no anchor prediction."""
    count = (3 * config.trajectories + 2 * config.retain_trajectories) * config.sampling_steps
    return count * math.prod(latent_shape) * getattr(torch, config.dtype).itemsize / GIB


def sizes() -> dict[str, float]:
    """Return the size in GiB for Stable Diffusion 1.5, by sampling steps and storage dtype."""
    plain = BankConfig(trajectories=1, retain_trajectories=TRAJECTORIES - 1)
    return {
        f"{steps} steps, {dtype}": size_of(replace(plain, sampling_steps=steps, dtype=dtype))
        for steps in (50, 20, 10)
        for dtype in ("float32", "bfloat16")
    }


def forward(model: TextToImage, config: BankConfig) -> float:
    """Return the seconds per sample of a bare UNet forward pass with the batch size of the bank."""
    denoiser, count = model.denoiser, 2 * config.trajectories
    x = torch.zeros(count, *denoiser.latent_shape, device=denoiser.device)
    t, context = torch.full((count,), 500, device=denoiser.device), model.encode(["a church"]).expand(count, -1, -1)
    times = []
    with torch.no_grad():
        for _ in range(config.sampling_steps):
            began = now(denoiser.device)
            denoiser.noise_pred(x, t, context)
            times.append(now(denoiser.device) - began)
    return statistics.median(times) / count


def measure(repeats: int = 3, device: str = "", work: Work = PUBLISHED) -> dict[str, Any]:
    """Measure the suite.

    Returns:
        `sd15_gib`, the size of 443 trajectories; `fill_over_bare_forwards`, the time to fill the miniature's bank
        divided by the time of the same number of bare UNet forward passes; `forward_equivalents_per_step` of a
        trajectory.
    """
    model = load("miniature", device or best_device())
    model = replace(model, denoiser=count_forwards(model.denoiser))
    ratios, forwards = [], 0.0
    for _ in range(repeats):
        _, step = sampled(model, TrajectoryBank, work)
        ratios.append(step.seconds / (step.forwards * forward(model, work.bank)))
        forwards = step.forwards
    return {
        "sd15_gib": sizes(),
        "fill_over_bare_forwards": statistics.median(ratios),
        "forward_equivalents_per_step": forwards,
        "parts": {"fill": spread(ratios)},
    }
