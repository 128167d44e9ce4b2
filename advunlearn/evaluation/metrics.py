"""Numbers: distances between sets of pictures."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def _root(matrix: Tensor) -> Tensor:
    """Return the square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets of features (N, D), (M, D).

    The Frechet distance of arXiv 1706.08500, on a judge's features instead of Inception's.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(x.T.cov()) for x in (a, b))
    root = _root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def count(hits: Tensor, key: str = "success") -> dict[str, int]:
    """Return {"success": n, "total": N} of a boolean tensor: counts, never bare percentages."""
    return {key: int(hits.sum()), "total": len(hits)}


def wilson_interval(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927), 95 % by default."""
    share, scale = hits / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def share(hits: int, total: int) -> dict[str, Any]:
    """Return a count of successes with its 95 % interval (Wilson)."""
    return {"success": hits, "total": total, "interval": [round(end, 4) for end in wilson_interval(hits, total)]}
