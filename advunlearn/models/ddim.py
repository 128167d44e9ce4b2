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


def scale_batch(count: int, latents: Tensor) -> int:
    """Return the batch size for latents (..., h, w) that costs as much as `count` latents of 8 x 8; at least 1."""
    return max(1, count * 64 // (latents.shape[-1] * latents.shape[-2]))


def draw_noise(seed: int, shape: Sequence[int]) -> Tensor:
    """Draw the starting noise (C, h, w) of one image from its own seed, as `sample --seed` does."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_noise_rows(seeds: Sequence[int | None], shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw noise (N, C, h, w) for all rows at once; a row with its own seed gets the noise of that seed instead."""
    noise = torch.randn(len(seeds), *shape, generator=generator)
    for row, seed in enumerate(seeds):
        if seed is not None:
            noise[row] = draw_noise(seed, shape)
    return noise


@dataclass(frozen=True)
class SamplingStep:
    """One DDIM step of B samples: its input latents, the two predictions that guidance combines, and its output."""

    timestep: int
    x_t: Tensor  # (B, C, h, w)
    uncond: Tensor  # (B, C, h, w)
    cond: Tensor  # (B, C, h, w)
    x_next: Tensor  # (B, C, h, w)


@torch.no_grad()
def ddim_steps(
    denoiser: Denoiser, cond: Tensor, uncond: Tensor, noise: Tensor, steps: int, guidance_scale: float, first: int = 0
) -> Iterator[SamplingStep]:
    """Yield the steps of DDIM sampling with classifier-free guidance.

    Args:
        denoiser: predicts the noise.
        cond: (B, L, D) conditioning; uncond: (1, L, D) of the empty prompt.
        noise: (B, C, h, w) starting latents.
        steps: number of DDIM steps.
        guidance_scale: w in eps = eps(0) + w (eps(c) - eps(0)).
        first: index of the step that takes the noise; the steps before it are left out.
    """
    alphas = denoiser.alphas_cumprod
    timesteps = ddim_timesteps(steps, len(alphas))
    context = torch.cat([uncond.expand_as(cond), cond])  # (2 B, L, D)
    x = noise
    for k, step in list(enumerate(timesteps.tolist()))[first:]:
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
