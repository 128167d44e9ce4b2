"""Projections onto the sets an attack may search."""

from __future__ import annotations

import torch
from torch import Tensor


def project_linf(x: Tensor, centre: Tensor, radius: float) -> Tensor:
    """Return the nearest point with |x - centre| <= radius in every coordinate; a radius of 0 means no bound."""
    return x if radius <= 0 else centre + (x - centre).clamp(-radius, radius)


def project_l2(x: Tensor, centre: Tensor, radius: float) -> Tensor:
    """Return the nearest point with |x - centre|_2 <= radius, each row (N, ...) as one vector; 0 means no bound."""
    if radius <= 0:
        return x
    moved = (x - centre).flatten(1)
    length = moved.norm(dim=1, keepdim=True).clamp(min=radius)
    return centre + (moved * (radius / length)).view_as(x)


def project_simplex(w: Tensor) -> Tensor:
    """Return the nearest point of the probability simplex in the last dimension (Duchi et al. 2008, figure 1)."""
    ordered = w.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    rank = torch.arange(1, w.shape[-1] + 1, device=w.device)
    last = (ordered > excess / rank).sum(-1, keepdim=True)
    return (w - excess.gather(-1, last - 1) / last).clamp(min=0)
