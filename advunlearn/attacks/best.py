"""The best point that a search has seen for each case."""

from __future__ import annotations

import torch
from torch import Tensor


class BestPoints:
    """For each of N rows the point with the lowest loss so far.

    Args:
        points: (N, ...) the first points: token ids or embeddings.
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points.detach().clone()
        self.losses = torch.full((len(points),), torch.inf, device=points.device)

    def update(self, points: Tensor, losses: Tensor) -> None:
        """Keep those of points (N, ...) whose losses (N,) are lower than the lowest so far."""
        losses = losses.to(self.losses)
        better = losses < self.losses
        self.points[better] = points.detach()[better]
        self.losses[better] = losses[better]
