"""The adversary inside training: projected gradient descent on token embeddings, eq. (4), (7) of arXiv 2405.15234."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import AttackConfig
from .projections import project_linf

Objective = Callable[[Tensor], Tensor]  # (N, k, D) embeddings -> (N,) losses, to be minimised
OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class AttackResult:
    """What an attack found."""

    embeddings: Tensor  # (N, k, D)
    losses: list[float]  # mean loss before each step


def starting_point(table: Tensor, config: AttackConfig, count: int, generator: torch.Generator) -> Tensor:
    """Return (count, k, D) embeddings: rows of the table (V, D), or normal noise of the table's deviation."""
    if config.start == "random":
        noise = torch.randn(count, config.tokens, table.shape[1], generator=generator)
        return noise.to(table.device) * table.std()
    rows = torch.randint(len(table), (count, config.tokens), generator=generator)
    return table[rows.to(table.device)].float().clone()


def pgd(
    objective: Objective, start: Tensor, config: AttackConfig, sigma: float, on_step: OnStep | None = None
) -> AttackResult:
    """Minimise `objective` by signed or Adam steps of `step_size * sigma`, inside a ball around `start`.

    Args:
        objective: maps (N, k, D) embeddings to (N,) losses; each row is attacked on its own.
        start: (N, k, D) starting embeddings.
        config: steps, step size, update rule, radius.
        sigma: standard deviation of the embedding table, the unit of step size and radius.
        on_step: called after each step with its number and the mean loss; may raise to cancel.

    The result is the point after the last step. Gradients are taken afresh in every step.
    """
    x = start.detach().clone().requires_grad_(True)
    step, radius, losses = config.step_size * sigma, config.radius * sigma, []
    adam = torch.optim.Adam([x], lr=step)
    for i in range(config.steps):
        loss = objective(x)
        (x.grad,) = torch.autograd.grad(loss.sum(), x)
        with torch.no_grad():
            if config.update == "sign":
                x -= step * x.grad.sign()
            else:
                adam.step()
            x.copy_(project_linf(x, start, radius))
        losses.append(loss.mean().item())
        if on_step is not None:
            on_step(i + 1, losses[-1])
    return AttackResult(x.detach(), losses)
