"""Projected gradient descent on token embeddings, eq. (4) and (7) of AdvUnlearn (arXiv 2405.15234)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..config.adversary import AdversaryConfig
from .projections import project_l2, project_linf

Objective = Callable[[Tensor], Tensor]  # (N, k, D) embeddings -> (N,) losses, to be minimised
OnStep = Callable[[int, float], None]  # called with the step's number, from 1, and the mean loss; may raise to cancel
PROJECTIONS = {"linf": project_linf, "l2": project_l2}


@dataclass(frozen=True)
class PGDResult:
    """The result of N attacks."""

    embeddings: Tensor  # (N, k, D)
    losses: list[float]  # mean loss before each step


class Minimiser(Protocol):
    """A search that minimises an objective; its arguments are those of `pgd`."""

    def __call__(
        self,
        objective: Objective,
        start: Tensor,
        config: AdversaryConfig,
        sigma: float,
        on_step: OnStep | None = None,
        centre: Tensor | None = None,
    ) -> PGDResult: ...


def starting_point(
    table: Tensor, config: AdversaryConfig, count: int, generator: torch.Generator, tokens: int | None = None
) -> Tensor:
    """Return (count, k, D) embeddings: random rows of the table (V, D), or normal noise of its standard deviation.

    k is `tokens` if given, otherwise `config.tokens`.
    """
    tokens = tokens or config.tokens
    if config.start == "random":
        noise = torch.randn(count, tokens, table.shape[1], generator=generator)
        return noise.to(table.device) * table.std()
    rows = torch.randint(len(table), (count, tokens), generator=generator)
    return table[rows.to(table.device)].float().clone()


class ProjectedStep:
    """One step of gradient descent in place: a signed or an Adam step of x (N, k, D), then the projection on a ball.

    Args:
        x: the point; it is changed in place.
        config: step size, update rule, radius, norm.
        sigma: standard deviation of what is attacked, the unit of step size and radius unless `config.unit` is
            absolute.
        centre: (N, k, D) centre of the ball.
    """

    def __init__(self, x: Tensor, config: AdversaryConfig, sigma: float, centre: Tensor) -> None:
        unit = sigma if config.unit == "sigma" else 1.0
        self.x = x
        self.centre = centre
        self.size = config.step_size * unit
        self.radius = config.radius * unit
        self.signed = config.update == "sign"
        self.adam = torch.optim.Adam([x], lr=self.size)
        self.project = PROJECTIONS[config.norm]

    @torch.no_grad()
    def __call__(self, gradient: Tensor) -> None:
        """Take a step along a gradient (N, k, D); a signed step leaves the sign in it."""
        if self.signed:
            self.x -= self.size * gradient.sign_()
        else:
            self.x.grad = gradient
            self.adam.step()
        self.x.copy_(self.project(self.x, self.centre, self.radius))


def pgd(
    objective: Objective,
    start: Tensor,
    config: AdversaryConfig,
    sigma: float,
    on_step: OnStep | None = None,
    centre: Tensor | None = None,
) -> PGDResult:
    """Minimise `objective` by signed or Adam steps inside a ball.

    Args:
        objective: maps (N, k, D) embeddings to (N,) losses; each row is attacked on its own.
        start: (N, k, D) starting embeddings.
        config: number of steps, step size, update rule, radius, norm.
        sigma: standard deviation of what is attacked, see `ProjectedStep`.
        on_step: called after each step.
        centre: (N, k, D) centre of the ball; `start` unless given.

    Returns the point after the last step. The gradient is computed from zero in every step.
    """
    x = start.detach().clone().requires_grad_(True)
    step = ProjectedStep(x, config, sigma, start if centre is None else centre)
    losses: list[float] = []
    for i in range(config.steps):
        loss = objective(x)  # (N,)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        step(gradient)
        losses.append(loss.mean().item())
        if on_step is not None:
            on_step(i + 1, losses[-1])
    return PGDResult(x.detach(), losses)
