"""The exceptions of the library. Their messages are for the person who started the run."""

from __future__ import annotations

from typing import Any


class AdvUnlearnError(ValueError):
    """Bad input. The message says what was wrong, what was found and what to do."""


class TrainingDiverged(RuntimeError):
    """A loss or gradient is no longer finite. `result`, a TrainResult, holds the last good state."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result
