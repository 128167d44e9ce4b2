"""What a run tells whoever started it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..models import Denoiser
from .bank import Report


@dataclass(frozen=True)
class Progress:
    """What a run reports after every attack step and every iteration."""

    phase: str  # "bank", "attack" or "train"
    iteration: int
    iterations: int
    attack_step: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    # After an iteration, to look at and not to change: what is in training, and the losses of all iterations so far.
    encoder: Any = None
    denoiser: Any = None
    history: Sequence[dict[str, float]] = ()


@dataclass(frozen=True)
class TrainResult:
    """What a run made. The model that was passed in is unchanged; these are copies."""

    encoder: Any  # CLIPTextModel
    denoiser: Denoiser
    losses: list[dict[str, float]]
    iterations: int  # done; fewer than asked for when stopped


Callback = Callable[[Progress], bool | None]  # return True to stop after the current iteration; may raise


def filling(callback: Callback | None) -> Report:
    """Return a report for `make_banks` that a run's callback follows."""

    def report(done: int, total: int) -> None:
        if callback is not None:
            callback(Progress("bank", done, total))

    return report
