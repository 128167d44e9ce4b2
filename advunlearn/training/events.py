"""Progress and result of a run, as its caller sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from ..models.denoiser import Denoiser
from .bank import Report


@dataclass(frozen=True)
class Progress:
    """Reported while the banks are filled, after every attack step and after every iteration."""

    phase: str  # "bank", "attack" or "train"
    iteration: int  # iterations done; in phase "bank" trajectories sampled
    iterations: int
    attack_step: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    # After an iteration, to be read only: the model in training, and the losses of all iterations until now.
    encoder: nn.Module | None = None
    denoiser: Denoiser | None = None
    history: Sequence[dict[str, float]] = ()


@dataclass(frozen=True)
class TrainResult:
    """The trained encoder or denoiser. The caller's model is unchanged; these are copies."""

    encoder: nn.Module  # a CLIPTextModel, or a DualTextEncoder
    denoiser: Denoiser
    losses: list[dict[str, float]]  # of each iteration
    iterations: int  # iterations done: fewer than configured if the callback stopped the run


Callback = Callable[[Progress], bool | None]  # return True to stop after the current iteration; may raise


def report_filling(callback: Callback | None) -> Report:
    """Return a report for `make_banks` that passes on to a run's callback."""

    def report(done: int, total: int) -> None:
        if callback is not None:
            callback(Progress("bank", done, total))

    return report
