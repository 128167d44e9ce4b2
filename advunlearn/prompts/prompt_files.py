"""Prompt files: text with one prompt per line, or CSV. Empty lines and lines that start with # are skipped."""

from __future__ import annotations

import csv
import pathlib

from ..errors import AdvUnlearnError


def read_rows(path: str | pathlib.Path, what: str = "prompt") -> list[dict[str, str]]:
    """Read the rows of a prompt file; each has at least a "prompt", which is not empty.

    A line of a text file is a prompt. The columns of a .csv file are named by its first row, in any case; if none of
    them is `prompt`, there is no header and the first column holds the prompts.

    Args:
        path: the file; a name that ends in .csv is read as CSV.
        what: the meaning of a line, for error messages.

    Raises AdvUnlearnError if the file is missing, is not UTF-8 text, or holds no prompt.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give a text file with one {what} per line")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise AdvUnlearnError(f"{path} is not UTF-8 text ({error}); give one {what} per line") from error
    rows = parse_csv(text) if path.suffix.lower() == ".csv" else [{"prompt": line} for line in parse_lines(text)]
    if not rows:
        raise AdvUnlearnError(f"{path} holds no prompt; write one {what} per line")
    return rows


def read_prompts(path: str | pathlib.Path, what: str = "prompt") -> list[str]:
    """Read the prompts of a file, see `read_rows`."""
    return [row["prompt"] for row in read_rows(path, what)]


def parse_lines(text: str) -> list[str]:
    """Return the lines of a text, without empty lines and comments."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def parse_csv(text: str) -> list[dict[str, str]]:
    """Return the rows of a CSV text that have a prompt, see `read_rows`."""
    cells = [[cell.strip() for cell in row] for row in csv.reader(parse_lines(text), skipinitialspace=True)]
    header = [cell.lower() for cell in cells[0]] if cells else []
    if "prompt" not in header:
        return [{"prompt": row[0]} for row in cells if row and row[0]]
    rows = (dict(zip(header, row, strict=False)) for row in cells[1:])
    return [row for row in rows if row.get("prompt")]
