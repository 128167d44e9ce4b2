"""The exceptions of the library. Their messages are for the person who started the run."""

from __future__ import annotations

import textwrap
from typing import Any

LONGEST = 1200  # characters of an error message


class AdvUnlearnError(ValueError):
    """Bad input. The message says what was wrong, what was found and what to do.

    A message is a few lines long, whatever names and values the input has: the middle of a longer one is left out.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}")


def shorten_error(error: Exception) -> str:
    """Return the first line of another library's error message, at most 200 characters long."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0] if lines else type(error).__name__, 200)


class TrainingDiverged(RuntimeError):
    """A loss or gradient is no longer finite. `result`, a TrainResult, holds the last good state."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result
