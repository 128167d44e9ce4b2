"""Retain sets: prompts that are to keep their meaning while a concept is erased."""

from __future__ import annotations

import csv
import pathlib
import re
import zlib
from collections.abc import Iterable, Sequence

from ..config.concept import bare_name
from ..config.presets import CO_OCCURRING
from ..errors import AdvUnlearnError

SETS = ("coco", "imagenet")


def without(prompts: Iterable[str], phrases: Iterable[str]) -> list[str]:
    """Leave out the prompts that contain one of the phrases: all of its words, one behind the other.

    Words are whole words, singular or plural: "dog" and "dogs" leave out "Hot dogs" and keep "a dogma"; "garbage truck"
    keeps "a truck".
    """
    wanted = [re.findall(r"\w+", phrase.lower()) for phrase in phrases]
    pattern = "|".join(rf"\b{_either_number(words)}\b" for words in wanted if words)
    return [p for p in prompts if not pattern or not re.search(pattern, p.lower())]


def _either_number(words: Sequence[str]) -> str:
    """Return a pattern of a phrase whose last word is singular or plural, whichever was given."""
    last = words[-1]
    singular = [last.removesuffix(end) for end in ("s", "es") if len(last) > 3 and last.endswith(end)]
    forms = "|".join(map(re.escape, [last, *singular]))
    return r"\W+".join([*map(re.escape, words[:-1]), f"(?:{forms})(?:s|es)?"])


def co_occurring(names: Iterable[str]) -> list[str]:
    """Return the words for what is seen together with these concepts, of those that have a list."""
    return [word for name in names for word in CO_OCCURRING.get(bare_name(name), ())]


def chosen(names: Sequence[str], name: str = "coco", also: Sequence[str] | None = None) -> list[str]:
    """Return a shipped retain set for concepts of these names, `mixed`.

    Args:
        names: the concepts; prompts that name one, by what it means, are left out: "a photo of a gun" is "gun".
        name: one of `SETS`.
        also: phrases for what is seen together with the concepts, left out too; by default those of `co_occurring`.
    """
    left_out = [*map(bare_name, names), *(co_occurring(names) if also is None else also)]
    return mixed(without(shipped(name), left_out))


def mixed(prompts: Sequence[str]) -> list[str]:
    """Return prompts in an order of their own, by a hash of each; the first, which runs draw as a sample, stays first.

    A bank holds as many of a list as it has trajectories, from the beginning on: of ImageNet's classes, which begin
    with 398 animals, these would be all that is retained. Prompts that are mixed already stay as they are.
    """
    return [*prompts[:1], *sorted(prompts[1:], key=lambda prompt: zlib.crc32(prompt.encode()))]


def lines(text: str) -> list[str]:
    """Return a text's lines; empty ones and those that begin with # are passed over."""
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def column(text: str, name: str = "prompt") -> list[str]:
    """Return a CSV text's column of that name, or its first where no row names it; empty cells are passed over."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines(text), skipinitialspace=True)]
    head = [cell.lower() for cell in rows[0]] if rows else []
    at, rows = (head.index(name), rows[1:]) if name in head else (0, rows)
    return [row[at] for row in rows if len(row) > at and row[at]]


def read(path: str | pathlib.Path, what: str = "retained prompt") -> list[str]:
    """Read prompts from a text file, one a line, or from the column `prompt`, or the first, of a .csv file.

    Empty lines and lines that begin with # are passed over.
    Raises AdvUnlearnError when the file is missing, is not UTF-8 text, or holds no prompt.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give a text file with one {what} a line")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark in front
    except UnicodeDecodeError as error:
        raise AdvUnlearnError(f"{path} is not UTF-8 text ({error}); give one {what} a line") from error
    prompts = column(text) if path.suffix.lower() == ".csv" else lines(text)
    if not prompts:
        raise AdvUnlearnError(f"{path} holds no prompt; write one {what} a line")
    return prompts


def _names(name: str) -> list[str]:
    return read(pathlib.Path(__file__).parent / f"{name}.csv")


def shipped(name: str = "coco") -> list[str]:
    """Return a retain set that ships with the library: "a photo of a <class>" over the classes of one of `SETS`."""
    return [f"a photo of {line}" for line in _names(name)]


def classes(name: str = "coco") -> list[str]:
    """Return the bare names of a shipped retain set: "person", "bicycle", ..."""
    return [re.sub(r"^an? ", "", line) for line in _names(name)]
