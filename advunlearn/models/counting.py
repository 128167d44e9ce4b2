"""Count what an attack asks of a denoiser, in UNet forward-equivalents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser

BACKWARD = 2  # a backward pass to the input costs about two forward passes


class Counting:
    """A denoiser that counts: each sample of a call is one F, and three where its conditioning has a gradient."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.forwards = denoiser, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """See `Denoiser.noise_pred`."""
        backward = conditioning.requires_grad and torch.is_grad_enabled()
        self.forwards += len(x_t) * (1 + BACKWARD * backward)
        return self.denoiser.noise_pred(x_t, t, conditioning)


def counting(denoiser: Denoiser) -> Any:
    """Return a denoiser that counts; it is a `Denoiser` with `forwards`."""
    return Counting(denoiser)
