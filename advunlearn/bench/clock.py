"""Time on a device that works behind the program's back."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Return the seconds of a clock, once the device has done all that it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
    return time.perf_counter()
