"""A clock for devices that compute asynchronously."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Wait until the device has finished all its work; return the time in seconds."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
    return time.perf_counter()
