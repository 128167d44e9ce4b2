"""A user's own prompts for an evaluation, with labels for their images and seeds for their noise."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..errors import AdvUnlearnError
from ..prompts.prompt_files import PromptFile, read_prompt_file

SEED_COLUMNS = ("seed", "evaluation_seed")  # the second as in the published prompt sets


@dataclass(frozen=True)
class UserPrompt:
    """A user's prompt."""

    prompt: str
    label: str = ""  # the judge's label that its image should have; "" for none
    seed: int | None = None  # of its image's noise; None: noise from the evaluation's own seed

    def describe(self) -> str | dict[str, object]:
        """Return the entry of the report."""
        if self.seed is not None:
            return asdict(self)
        return f"{self.prompt} | {self.label}" if self.label else self.prompt


def describe_prompts(prompts: Sequence[str | UserPrompt]) -> list[str | dict[str, object]]:
    """Return the entries of the report."""
    return [prompt if isinstance(prompt, str) else prompt.describe() for prompt in prompts]


def parse_labelled_prompt(line: str) -> UserPrompt:
    """Parse a line "prompt | label", or only a prompt. Raises AdvUnlearnError for a line without a prompt."""
    prompt, bar, label = (part.strip() for part in line.rpartition("|")) if "|" in line else (line.strip(), "", "")
    if not prompt or (bar and not label):
        raise AdvUnlearnError(f"retained line {line!r} is not of the form: prompt | label")
    return UserPrompt(prompt, label)


def parse_row(row: Mapping[str, str], where: str) -> UserPrompt:
    """Parse a row of a CSV file. Raises AdvUnlearnError for a seed that is not a whole number."""
    seed = next((row[name] for name in SEED_COLUMNS if row.get(name)), "")
    if seed and not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
        raise AdvUnlearnError(f"{where}: the seed of {row['prompt']!r} is {seed!r}; give a whole number, 0 or more")
    return UserPrompt(row["prompt"], row.get("label", ""), int(seed) if seed else None)


def parse_user_prompts(file: PromptFile, labels: bool = False) -> list[UserPrompt]:
    """Return the prompts of a file; a table may have the columns label and seed.

    Args:
        file: what `prompt_files.read_prompt_file` returns.
        labels: whether the lines of a text file are "prompt | label".

    Raises AdvUnlearnError for a bad line or seed.
    """
    if file.is_table:
        return [parse_row(row, str(file.path)) for row in file.rows]
    return [parse_labelled_prompt(prompt) if labels else UserPrompt(prompt) for prompt in file.prompts]


def read_user_prompts(path: str | pathlib.Path, what: str, labels: bool = False) -> list[UserPrompt]:
    """Read prompts from a file, see `read_prompt_file` and `parse_user_prompts`."""
    return parse_user_prompts(read_prompt_file(path, what), labels)
