"""Deterministic DDIM sampling with classifier-free guidance (arXiv 2010.02502, 2207.12598)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser


def ddim_timesteps(steps: int, total: int = 1000) -> Tensor:
    """Return `steps` timesteps from high to low, evenly spaced, offset by one, as Stable Diffusion's DDIM does."""
    return (torch.arange(steps) * (total // steps)).flip(0).clamp(max=total - 2) + 1


def batch_of(count: int, latents: Tensor) -> int:
    """Return how many latents to take at once: `count` of 8 x 8, fewer of larger ones, at least one."""
    return max(1, count * 64 // (latents.shape[-1] * latents.shape[-2]))


def noise_of(seed: int, shape: Sequence[int]) -> Tensor:
    """Return the starting noise (C, h, w) of one picture by a seed of its own, as `sample --seed` draws it."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise_of_rows(seeds: Sequence[int | None], shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return noise (N, C, h, w): one draw for all rows, in which a row with a seed of its own has that one's."""
    noise = torch.randn(len(seeds), *shape, generator=generator)
    for row, seed in enumerate(seeds):
        if seed is not None:
            noise[row] = noise_of(seed, shape)
    return noise


@dataclass(frozen=True)
class SamplingStep:
    """One DDIM step of B samples: the latents it began with, and the two predictions guidance needed there."""

    timestep: int
    x_t: Tensor  # (B, C, h, w)
    uncond: Tensor  # (B, C, h, w)
    cond: Tensor  # (B, C, h, w)
    x_next: Tensor  # (B, C, h, w)


@torch.no_grad()
def ddim_steps(
    denoiser: Denoiser, cond: Tensor, uncond: Tensor, noise: Tensor, steps: int, guidance_scale: float
) -> Iterator[SamplingStep]:
    """Yield the steps of a DDIM run.

    Args:
        denoiser: predicts the noise.
        cond: (B, L, D) conditioning; uncond: (1, L, D) of the empty prompt.
        noise: (B, C, h, w) starting latents.
        steps: number of DDIM steps.
        guidance_scale: w in eps = eps(0) + w (eps(c) - eps(0)).
    """
    alphas, timesteps = denoiser.alphas_cumprod, ddim_timesteps(steps, len(denoiser.alphas_cumprod))
    context, x = torch.cat([uncond.expand_as(cond), cond]), noise
    for k, step in enumerate(timesteps.tolist()):
        t = torch.full((2 * len(x),), step, device=x.device)
        eps_0, eps_c = denoiser.noise_pred(torch.cat([x, x]), t, context).chunk(2)
        eps = eps_0 + guidance_scale * (eps_c - eps_0)
        # Stable Diffusion's samplers end at the first timestep's noise level (set_alpha_to_one = false).
        a, a_next = alphas[step], alphas[timesteps[k + 1]] if k + 1 < steps else alphas[0]
        x_0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x_next = a_next.sqrt() * x_0 + (1 - a_next).sqrt() * eps
        yield SamplingStep(step, x, eps_0, eps_c, x_next)
        x = x_next


def ddim_sample(
    denoiser: Denoiser, cond: Tensor, uncond: Tensor, noise: Tensor, steps: int, guidance_scale: float
) -> Tensor:
    """Return the final latents (B, C, h, w) of `ddim_steps`."""
    x = noise
    for step in ddim_steps(denoiser, cond, uncond, noise, steps, guidance_scale):
        x = step.x_next
    return x
