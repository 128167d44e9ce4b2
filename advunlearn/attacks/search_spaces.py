"""Search spaces of the gradient attacks: the token simplex, the nearest tokens, a ball of embeddings, one embedding."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..config.attacks import WeightStart
from .projections import project_linf, project_simplex
from .vocabulary import find_nearest, normalize_rows


class SearchSpace(Protocol):
    """A set that an attack searches, and its current point for each case."""

    parameter: Tensor

    def embeddings(self) -> Tensor:
        """Return the differentiable embeddings (N, k, D) for the next gradient step."""
        ...

    def project(self) -> None:
        """Project the parameter onto the set, in place."""
        ...

    def result(self) -> Tensor:
        """Return the embeddings (N, k, D) of the current point."""
        ...


class TokenSimplex:
    """Weights of all tokens, on the probability simplex, for each of (N, k) slots; straight-through sampling."""

    def __init__(
        self,
        table: Tensor,
        vocabulary: Tensor,
        count: int,
        tokens: int,
        generator: torch.Generator,
        start: WeightStart = "random",
    ) -> None:
        self.rows = table[vocabulary].detach().float()  # (V, D)
        self.vocabulary = vocabulary
        self.generator = generator
        shape = (count, tokens, len(vocabulary))
        w = torch.ones(shape) if start == "uniform" else torch.rand(shape, generator=generator)
        self.parameter = (w / w.sum(-1, keepdim=True)).to(table.device).requires_grad_(True)  # (N, k, V)

    def embeddings(self) -> Tensor:
        """Draw a token per slot from the current weights; the gradient passes to the weights unchanged."""
        w = self.parameter
        drawn = torch.multinomial(w.detach().flatten(0, 1).cpu() + 1e-8, 1, generator=self.generator)
        hard = torch.zeros_like(w).scatter_(-1, drawn.to(w.device).view(*w.shape[:2], 1), 1.0)
        return (hard - w.detach() + w) @ self.rows

    def project(self) -> None:
        """Project the weights of each slot onto the simplex."""
        with torch.no_grad():
            self.parameter.copy_(project_simplex(self.parameter))

    def token_ids(self) -> Tensor:
        """Return the most likely tokens (N, k), as ids of the full vocabulary, on the CPU."""
        return self.vocabulary[self.parameter.detach().argmax(-1).cpu()]

    def result(self) -> Tensor:
        """Return the embeddings of the most likely tokens."""
        return self.rows[self.parameter.detach().argmax(-1)]


class NearestTokens:
    """Free embeddings, each representing its nearest token: PEZ (arXiv 2302.03668, algorithm 1).

    The gradient is computed at the nearest tokens and applied to the free embeddings.
    """

    def __init__(self, table: Tensor, vocabulary: Tensor, count: int, tokens: int, generator: torch.Generator) -> None:
        self.rows = table[vocabulary.to(table.device)].detach().float()  # (V, D)
        self.vocabulary = vocabulary
        self.directions = normalize_rows(self.rows)
        drawn = torch.randint(len(vocabulary), (count, tokens), generator=generator)
        self.parameter = self.rows[drawn.to(table.device)].clone().requires_grad_(True)  # (N, k, D)

    def embeddings(self) -> Tensor:
        """Return the nearest tokens' embeddings; the gradient passes to the free ones unchanged."""
        return self.result() + (self.parameter - self.parameter.detach())

    def project(self) -> None:
        """Leave the free embeddings as they are; `embeddings` and `result` project them."""

    def token_ids(self) -> Tensor:
        """Return the nearest tokens (N, k), as ids of the full vocabulary, on the CPU."""
        return self.vocabulary[find_nearest(self.parameter.detach(), self.directions).cpu()]

    def result(self) -> Tensor:
        """Return the embeddings of the nearest tokens."""
        return self.rows[find_nearest(self.parameter.detach(), self.directions)]


class EmbeddingBall:
    """Embeddings (N, k, D) in an L-inf ball around random real tokens."""

    def __init__(
        self, table: Tensor, vocabulary: Tensor, count: int, tokens: int, generator: torch.Generator, radius: float
    ) -> None:
        drawn = vocabulary[torch.randint(len(vocabulary), (count, tokens), generator=generator)]
        self.centre = table[drawn.to(table.device)].detach().float()
        self.radius = radius
        self.parameter = self.centre.clone().requires_grad_(True)

    def embeddings(self) -> Tensor:
        """Return the parameter itself."""
        return self.parameter

    def project(self) -> None:
        """Project onto the ball."""
        with torch.no_grad():
            self.parameter.copy_(project_linf(self.parameter, self.centre, self.radius))

    def result(self) -> Tensor:
        """Return the current embeddings."""
        return self.parameter.detach()


class SharedEmbedding:
    """One unbounded point (1, k, D) that all cases of a batch share."""

    def __init__(self, start: Tensor, batch: int) -> None:
        self.parameter = start.detach().float().clone().requires_grad_(True)
        self.batch = batch

    def embeddings(self) -> Tensor:
        """Return the point once per case of the batch, (batch, k, D)."""
        return self.parameter.expand(self.batch, -1, -1)

    def project(self) -> None:
        """Do nothing: the space has no bound."""

    def result(self) -> Tensor:
        """Return the point (1, k, D)."""
        return self.parameter.detach()
