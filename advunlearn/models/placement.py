"""Move modules between devices for a moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn


def _device_type(module: nn.Module) -> str:
    return next(module.parameters()).device.type


@contextlib.contextmanager
def on_device(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Move modules to a device; afterwards those that were on another one are there again.

    Tensors that were made of their weights meanwhile stay where they are.
    """
    moved = [(m, next(m.parameters()).device) for m in modules if _device_type(m) != device.type]
    try:
        for module, _ in moved:
            module.to(device)
        yield
    finally:
        for module, before in moved:
            module.to(before)
