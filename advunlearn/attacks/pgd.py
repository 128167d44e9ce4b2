"""The adversary inside training: projected gradient descent on token embeddings, eq. (4), (7) of arXiv 2405.15234."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.adversary import AdversaryConfig
from ..training.quirks import NONE, Quirks
from .projections import project_l2, project_linf

Objective = Callable[[Tensor], Tensor]  # (N, k, D) embeddings -> (N,) losses, to be minimised
OnStep = Callable[[int, float], None]
PROJECTIONS = {"linf": project_linf, "l2": project_l2}


@dataclass(frozen=True)
class AttackResult:
    """What an attack found."""

    embeddings: Tensor  # (N, k, D)
    losses: list[float]  # mean loss before each step


def starting_point(
    table: Tensor, config: AdversaryConfig, count: int, generator: torch.Generator, tokens: int | None = None
) -> Tensor:
    """Return (count, k, D) embeddings: rows of the table (V, D), or normal noise of the table's deviation.

    k is `tokens` where the position decides it, else the number that `config` says.
    """
    tokens = tokens or config.tokens
    if config.start == "random":
        noise = torch.randn(count, tokens, table.shape[1], generator=generator)
        return noise.to(table.device) * table.std()
    rows = torch.randint(len(table), (count, tokens), generator=generator)
    return table[rows.to(table.device)].float().clone()


def pgd(
    objective: Objective,
    start: Tensor,
    config: AdversaryConfig,
    sigma: float,
    on_step: OnStep | None = None,
    quirks: Quirks = NONE,
    centre: Tensor | None = None,
) -> AttackResult:
    """Minimise `objective` by signed or Adam steps of `step_size * sigma`, inside a ball.

    Args:
        objective: maps (N, k, D) embeddings to (N,) losses; each row is attacked on its own.
        start: (N, k, D) starting embeddings.
        config: steps, step size, update rule, radius, norm.
        sigma: standard deviation of what is attacked; the unit of step size and radius unless `config.unit` says that
            they are absolute.
        on_step: called after each step with its number and the mean loss; may raise to cancel.
        quirks: what to do as the published code does.
        centre: (N, k, D) of the ball; `start` unless given.

    The result is the point after the last step. Gradients are taken afresh in every step.
    """
    unit = sigma if config.unit == "sigma" else 1.0
    x = start.detach().clone().requires_grad_(True)
    result, step, radius, losses = x, config.step_size * unit, config.radius * unit, []
    middle = start if centre is None else centre
    adam, project = torch.optim.Adam([x], lr=step), PROJECTIONS[config.norm]
    for i in range(config.steps):
        if quirks.result_before_last_step:
            result = x.detach().clone()
        loss = objective(x)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        x.grad = gradient + x.grad if quirks.gradient_accumulates and x.grad is not None else gradient
        with torch.no_grad():
            if config.update == "sign":
                x -= step * x.grad.sign_()
            else:
                adam.step()
            x.copy_(project(x, middle, radius))
        losses.append(loss.mean().item())
        if on_step is not None:
            on_step(i + 1, losses[-1])
    return AttackResult(result.detach(), losses)
