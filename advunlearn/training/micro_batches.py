"""Micro-batches: a batch in parts that fit into memory, with the gradient of the whole batch (up to rounding)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..losses import attack_loss
from ..models.denoiser import Denoiser
from .bank import BankSamples

RowLoss = Callable[[slice, Tensor], Tensor]  # rows, their conditioning (n, L, D) -> their losses (n,)


def split_batch(
    concept: BankSamples, retained: BankSamples | None, size: int
) -> Iterator[tuple[BankSamples | None, BankSamples | None]]:
    """Yield the concept's and the retained samples in parts of at most `size` together; 0 means one part.

    The parts' weights add up to those of the batch, so the sum of their weighted losses is the batch's loss.
    """
    if not size or size >= len(concept) + (len(retained) if retained else 0):
        yield concept, retained
        return
    for start in range(0, len(concept), size):
        yield concept[start : start + size], None
    for start in range(0, len(retained) if retained else 0, size):
        assert retained is not None
        yield None, retained[start : start + size]


class _RowLosses(torch.autograd.Function):
    """Losses of rows, whose gradient to the conditioning was computed with them, part by part."""

    @staticmethod
    def forward(ctx: Any, conditioning: Tensor, row_loss: RowLoss, size: int) -> Tensor:
        losses, gradients = [], []
        for start in range(0, len(conditioning), size):
            rows = slice(start, min(start + size, len(conditioning)))
            with torch.enable_grad():
                part = conditioning[rows].detach().requires_grad_(True)
                loss = row_loss(rows, part)  # (n,)
                (gradient,) = torch.autograd.grad(loss.sum(), part)
            losses.append(loss.detach())
            gradients.append(gradient)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors  # (B, L, D)
        return upstream[:, None, None].to(gradients.dtype) * gradients, None, None


def row_losses(row_loss: RowLoss, conditioning: Tensor, size: int) -> Tensor:
    """Return the losses (B,) of rows that do not depend on each other, computed `size` rows at a time.

    Args:
        row_loss: gives the losses of some rows from their conditioning; gradients to anything else are lost.
        conditioning: (B, L, D).
        size: rows at a time; 0 means all of them.
    """
    if not size or size >= len(conditioning) or not conditioning.requires_grad:
        return row_loss(slice(0, len(conditioning)), conditioning)
    losses: Tensor = _RowLosses.apply(conditioning, row_loss, size)
    return losses


def samples_loss(denoiser: Denoiser, samples: BankSamples) -> RowLoss:
    """Return eq. (4) of samples as a function of their conditioning."""

    def row_loss(rows: slice, conditioning: Tensor) -> Tensor:
        predicted = denoiser.noise_pred(samples.x_t[rows], samples.t[rows], conditioning)
        return attack_loss(predicted, samples.cond[rows])

    return row_loss
