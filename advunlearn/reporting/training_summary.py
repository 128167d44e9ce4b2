"""The summary of a finished training run as text."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from ..config.training import RunConfig
from ..training.events import TrainResult


def summarize_training(
    run: RunConfig, result: TrainResult, path: pathlib.Path, warnings: Iterable[str], details: Iterable[str]
) -> str:
    """Return the summary: what was trained and saved, warnings, losses, and further lines.

    Args:
        run: the settings.
        result: the result of training.
        path: the saved encoder.
        warnings: sentences about unusual settings.
        details: the scope, the memory and the settings of the run, as text.
    """
    names = ", ".join(map(repr, run.concept.names))
    losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses[-1].items())
    return "\n".join(
        [
            f"{run.train.mode} on {names} ({run.concept.kind}): {result.iterations} iterations, seed {run.train.seed}",
            f"saved as {path}",
            *(f"warning: {warning}" for warning in warnings),
            f"last losses: {losses}",
            *details,
        ]
    )
