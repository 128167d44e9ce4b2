"""What a user asks of an evaluation: prompts, the labels their pictures should have, the seeds of their noise."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import AdvUnlearnError
from ..prompts.prompt_files import read_rows

SEEDS = ("seed", "evaluation_seed")  # columns; the second as in the published prompt sets


@dataclass(frozen=True)
class UserPrompt:
    """A prompt of the user's."""

    prompt: str
    label: str = ""  # what its picture should show, by the judge; "" where none was given
    seed: int | None = None  # of its picture's noise; None: a row of the evaluation's own draw

    def described(self) -> str | dict[str, Any]:
        """Return what a report says of it."""
        if self.seed is not None:
            return asdict(self)
        return f"{self.prompt} | {self.label}" if self.label else self.prompt


def described(rows: Sequence[str | UserPrompt]) -> list[str | dict[str, Any]]:
    """Return what a report says of what was asked."""
    return [row if isinstance(row, str) else row.described() for row in rows]


def labelled(line: str) -> UserPrompt:
    """Parse a line "prompt | label", or a prompt alone. Raises AdvUnlearnError for a line without a prompt."""
    prompt, bar, label = (part.strip() for part in line.rpartition("|")) if "|" in line else (line.strip(), "", "")
    if not prompt or (bar and not label):
        raise AdvUnlearnError(f"retained line {line!r} is not of the form: prompt | label")
    return UserPrompt(prompt, label)


def of_row(row: Mapping[str, str], where: str) -> UserPrompt:
    """Return what a row of a table asks. Raises AdvUnlearnError for a seed that is no whole number."""
    seed = next((row[name] for name in SEEDS if row.get(name)), "")
    if seed and not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
        raise AdvUnlearnError(f"{where}: the seed of {row['prompt']!r} is {seed!r}; give a whole number, 0 or more")
    return UserPrompt(row["prompt"], row.get("label", ""), int(seed) if seed else None)


def read(path: str | pathlib.Path, what: str, labels: bool = False) -> list[UserPrompt]:
    """Read prompts from a file, see `prompt_files.read_rows`; a .csv file may have the columns label and seed.

    Args:
        path: the file.
        what: the meaning of a line, for error messages.
        labels: whether the lines of a text file are "prompt | label".

    Raises AdvUnlearnError as `read_rows` does, and for a bad line or seed.
    """
    rows, path = read_rows(path, what), pathlib.Path(path)
    if path.suffix.lower() == ".csv":
        return [of_row(row, str(path)) for row in rows]
    return [labelled(row["prompt"]) if labels else UserPrompt(row["prompt"]) for row in rows]
