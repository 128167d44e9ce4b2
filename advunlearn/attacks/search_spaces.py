"""The sets that gradient attacks move through: tokens by weight, tokens by nearness, embeddings in a ball."""

from __future__ import annotations

import torch
from torch import Tensor

from .projections import project_linf, project_simplex
from .vocabulary import nearest, unit


class TokenSearch:
    """Discrete search: a point on the vocabulary's simplex per prefix token, drawn as a token, straight through."""

    def __init__(self, table: Tensor, vocabulary: Tensor, count: int, tokens: int, generator: torch.Generator) -> None:
        self.rows, self.vocabulary, self.generator = table[vocabulary].detach().float(), vocabulary, generator
        w = torch.rand(count, tokens, len(vocabulary), generator=generator).to(table.device)
        self.parameter = (w / w.sum(-1, keepdim=True)).requires_grad_(True)

    def embeddings(self) -> Tensor:
        """Draw one token per place from the current weights; the gradient passes to the weights unchanged."""
        w = self.parameter
        drawn = torch.multinomial(w.detach().flatten(0, 1).cpu() + 1e-8, 1, generator=self.generator)
        hard = torch.zeros_like(w).scatter_(-1, drawn.to(w.device).view(*w.shape[:2], 1), 1.0)
        return (hard - w.detach() + w) @ self.rows

    def project(self) -> None:
        """Project every place's weights onto the simplex."""
        with torch.no_grad():
            self.parameter.copy_(project_simplex(self.parameter))

    def token_ids(self) -> Tensor:
        """Return the most likely tokens (N, k), as ids of the full vocabulary."""
        return self.vocabulary[self.parameter.detach().argmax(-1).cpu()]

    def found(self) -> Tensor:
        """Return the embeddings of the most likely tokens."""
        return self.rows[self.parameter.detach().argmax(-1)]


class HardSearch:
    """PEZ's search: free embeddings that always stand for their nearest tokens (arXiv 2302.03668, algorithm 1).

    The gradient is taken at the nearest tokens and applied to the free embeddings.
    """

    def __init__(self, table: Tensor, vocabulary: Tensor, count: int, tokens: int, generator: torch.Generator) -> None:
        self.rows, self.vocabulary = table[vocabulary.to(table.device)].detach().float(), vocabulary
        self.unit = unit(self.rows)
        drawn = torch.randint(len(vocabulary), (count, tokens), generator=generator)
        self.parameter = self.rows[drawn.to(table.device)].clone().requires_grad_(True)

    def embeddings(self) -> Tensor:
        """Return the nearest tokens' embeddings; the gradient passes to the free ones unchanged."""
        return self.found() + (self.parameter - self.parameter.detach())

    def project(self) -> None:
        """Leave the free embeddings: they are projected where they are read."""

    def token_ids(self) -> Tensor:
        """Return the nearest tokens (N, k), as ids of the full vocabulary, on the CPU."""
        return self.vocabulary[nearest(self.parameter.detach(), self.unit).cpu()]

    def found(self) -> Tensor:
        """Return the embeddings of the nearest tokens."""
        return self.rows[nearest(self.parameter.detach(), self.unit)]


class SoftSearch:
    """Search in embedding space, inside an L-inf ball around random real tokens."""

    def __init__(
        self, table: Tensor, vocabulary: Tensor, count: int, tokens: int, generator: torch.Generator, radius: float
    ) -> None:
        drawn = vocabulary[torch.randint(len(vocabulary), (count, tokens), generator=generator)]
        self.centre, self.radius = table[drawn.to(table.device)].detach().float(), radius
        self.parameter = self.centre.clone().requires_grad_(True)

    def embeddings(self) -> Tensor:
        """Return the embeddings themselves."""
        return self.parameter

    def project(self) -> None:
        """Project onto the ball."""
        with torch.no_grad():
            self.parameter.copy_(project_linf(self.parameter, self.centre, self.radius))

    def found(self) -> Tensor:
        """Return the current embeddings."""
        return self.parameter.detach()


class SharedSearch:
    """One point of embedding space (1, k, D) that a batch of cases shares."""

    def __init__(self, start: Tensor, batch: int) -> None:
        self.parameter, self.batch = start.detach().float().clone().requires_grad_(True), batch

    def embeddings(self) -> Tensor:
        """Return the point once for each case of the batch."""
        return self.parameter.expand(self.batch, -1, -1)

    def project(self) -> None:
        """Leave it: there is no bound."""

    def found(self) -> Tensor:
        """Return the point (1, k, D)."""
        return self.parameter.detach()
