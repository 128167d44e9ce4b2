"""Count the UNet forward passes of an attack."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from .denoiser import Denoiser

BACKWARD = 2  # the cost of a backward pass to the input, in forward passes


class CountedDenoiser(Denoiser, Protocol):
    """A denoiser with a count of its forward passes."""

    forwards: int  # per sample; a backward pass counts as `BACKWARD` forward passes


class _Counter:
    """Pass everything on to a denoiser, and count its predictions."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.forwards = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.denoiser, name)

    def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """Return the denoiser's prediction. A conditioning that requires a gradient costs a backward pass too."""
        backward = conditioning.requires_grad and torch.is_grad_enabled()
        self.forwards += len(x_t) * (1 + BACKWARD * backward)
        return self.denoiser.noise_pred(x_t, t, conditioning)


def count_forwards(denoiser: Denoiser) -> CountedDenoiser:
    """Return a denoiser that predicts as `denoiser` does and counts its forward passes, from 0, in `forwards`."""
    return cast(CountedDenoiser, _Counter(denoiser))  # __getattr__ provides the rest, which mypy does not see
