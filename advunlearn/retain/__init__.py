"""Retain sets: prompts that are to keep their meaning while a concept is erased."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable

from ..errors import AdvUnlearnError


def without(prompts: Iterable[str], concept: str) -> list[str]:
    """Leave out the prompts that contain a word of the concept, as a whole word, singular or plural."""
    words = [re.escape(w) for w in re.findall(r"\w+", concept.lower())]
    pattern = rf"\b({'|'.join(words)})(s|es)?\b"
    return [p for p in prompts if not words or not re.search(pattern, p.lower())]


def lines(text: str) -> list[str]:
    """Return a text's lines; empty ones and those that begin with # are passed over."""
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def read(path: str | pathlib.Path, what: str = "retained prompt") -> list[str]:
    """Read a text file of one prompt a line; empty lines and lines that begin with # are passed over.

    Raises AdvUnlearnError when the file is missing or holds no prompt.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give a text file with one {what} a line")
    try:
        prompts = lines(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise AdvUnlearnError(f"{path} is not UTF-8 text ({error}); give one {what} a line") from error
    if not prompts:
        raise AdvUnlearnError(f"{path} holds no prompt; write one {what} a line")
    return prompts


def shipped(name: str = "coco") -> list[str]:
    """Return a retain set that ships with the library: "a photo of a <class>" over the 80 COCO classes."""
    return [f"a photo of {line}" for line in read(pathlib.Path(__file__).parent / f"{name}.csv")]


def classes(name: str = "coco") -> list[str]:
    """Return the bare names of a shipped retain set: "person", "bicycle", ..."""
    return [re.sub(r"^an? ", "", line) for line in read(pathlib.Path(__file__).parent / f"{name}.csv")]
