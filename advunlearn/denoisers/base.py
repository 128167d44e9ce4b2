"""What the method asks of a denoiser."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Denoiser(Protocol):
    """Predicts noise. Gradients reach `conditioning`; the weights stay as they are."""

    alphas_cumprod: Tensor  # (T,) on the CPU
    latent_shape: tuple[int, int, int]  # (C, h, w)

    @property
    def device(self) -> torch.device:
        """Where latents and conditioning are to be."""
        ...

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the modules that a run must freeze; () where a host takes care of its own."""
        ...

    def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """Return the predicted noise (B, C, h, w) in fp32.

        Args:
            x_t: (B, C, h, w) noisy latents in the variance-preserving scaling, x_t = sqrt(a) x_0 + sqrt(1 - a) noise.
            t: (B,) timesteps, 0 to T - 1.
            conditioning: (B, L, D) hidden states of the text encoder.
        """
        ...


def add_noise(x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise; latents (B, C, h, w), t (B,)."""
    a = alphas_cumprod.to(x_0.device)[t].view(-1, 1, 1, 1)
    return a.sqrt() * x_0 + (1 - a).sqrt() * noise
