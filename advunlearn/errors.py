"""The exceptions of the library. Their messages are for the person who started the run."""

from __future__ import annotations

import textwrap
from typing import Any


class AdvUnlearnError(ValueError):
    """Bad input. The message says what was wrong, what was found and what to do."""


def shorten_error(error: Exception) -> str:
    """Return the first line of another library's error message, at most 200 characters long."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0] if lines else type(error).__name__, 200)


class TrainingDiverged(RuntimeError):
    """A loss or gradient is no longer finite. `result`, a TrainResult, holds the last good state."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result
