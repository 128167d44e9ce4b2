"""What a run costs, measured on this machine: `advunlearn bench`. benchmarks/README.md explains each figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SUITES = ("iteration", "bank", "memory", "scale")


def suite(name: str) -> Callable[[int, str], dict[str, Any]]:
    """Return what measures a suite, given the number of repeats and the device ("" for the first that is there)."""
    from . import bank, iteration, memory, scale

    return {"iteration": iteration, "bank": bank, "memory": memory, "scale": scale}[name].measure
