"""Devices: choose one, move modules between them and back, and what a device computes slowly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn


def move_modules(modules: Iterable[nn.Module], device: torch.device) -> list[tuple[nn.Module, torch.device]]:
    """Move modules to a device; return those that were on one of another type, with that device."""
    before = [(module, next(module.parameters()).device) for module in modules]
    moved = [(module, place) for module, place in before if place.type != device.type]
    for module, _ in moved:
        module.to(device)
    return moved


@contextlib.contextmanager
def on_device(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Move modules to a device; afterwards those that were on another one are there again.

    Tensors that were made of their weights meanwhile stay where they are.
    """
    modules = list(modules)
    before = [(module, next(module.parameters()).device) for module in modules]
    moved = [(module, place) for module, place in before if place.type != device.type]
    try:
        move_modules(modules, device)
        yield
    finally:
        for module, place in moved:
            module.to(place)


def uses_plain_attention(device: str | torch.device, dtype: torch.dtype) -> bool:
    """Return whether to compute attention by plain matrix products instead of a fused kernel.

    In bf16 on CPUs the backward pass of the fused kernel takes 2.2 times as long.
    """
    return torch.device(device).type == "cpu" and dtype == torch.bfloat16


def best_device() -> str:
    """Return cuda, mps or cpu: the first that is available."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
