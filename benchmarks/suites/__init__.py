"""The suites of `python -m benchmarks`: the cost of a training run on this machine. README.md explains each figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import bank, iteration, memory, micro_batches, scale

# Each is called with the number of repeats and the device.
SUITES: dict[str, Callable[[int, str], dict[str, Any]]] = {
    "iteration": iteration.measure,
    "bank": bank.measure,
    "memory": memory.measure,
    "scale": scale.measure,
    "micro_batches": micro_batches.measure,
}
