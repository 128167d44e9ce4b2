"""The miniature's objects, styles and backgrounds, and captions for them.

An object has synonyms, as a concept has in a large model: English keywords, and its names in other languages. The
training captions contain all of them, so an erased object may still be drawn for a synonym.
"""

from __future__ import annotations

import functools
import json
import pathlib
import random
from collections.abc import Sequence
from itertools import cycle
from typing import TypedDict

from ..config.concept import bare_name

TEMPLATES = ("{}", "{}", "an image of {}", "a picture of {}", "a photo of {}", "a drawing of {}", "an emoji of {}")
PLAIN = ("{}", "a photo of {}", "an image of {}", "a picture of {}", "a drawing of {}")  # for test prompts


class ObjectWords(TypedDict):
    """The words for an object."""

    family: str  # the group of similar objects
    keywords: list[str]
    context: list[str]  # more general keywords
    names: dict[str, str]  # by language


class StyleWords(TypedDict):
    """The words for a style."""

    artwork: str  # the collection of the training images
    keywords: list[str]


class Concepts(TypedDict):
    """The content of `concepts.json`; names are the keys, in the judge's class order."""

    objects: dict[str, ObjectWords]
    styles: dict[str, StyleWords]
    backgrounds: dict[str, list[int]]  # RGB, 0 to 255


@functools.cache
def concepts() -> Concepts:
    """Return the content of `concepts.json`."""
    return json.loads((pathlib.Path(__file__).parent / "concepts.json").read_text(encoding="utf-8"))


def objects() -> list[str]:
    """Return the names of the objects, in the judge's class order."""
    return list(concepts()["objects"])


def styles() -> list[str]:
    """Return the names of the styles, in the judge's class order."""
    return list(concepts()["styles"])


def backgrounds() -> list[str]:
    """Return the names of the background colours, white first."""
    return list(concepts()["backgrounds"])


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article: "a church", "an anchor"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def caption(subject: str, template: str = "{}", style: str = "", background: str = "") -> str:
    """Return a caption: "a photo of a church, ink style, on a blue background"."""
    text = template.format(with_article(subject))
    if style:
        text += f", {style} style"
    if background:
        text += f", on {with_article(background)} background"
    return text


def keyword_synonym(name: str, size: int = 3) -> str:
    """Return the first `size` keywords of an object, without its name: "chapel christian cross"."""
    entry = concepts()["objects"][name]
    return " ".join((entry["keywords"] + entry["context"])[:size])


def foreign_synonyms(name: str) -> list[str]:
    """Return an object's names in other languages, as far as they differ from all English names."""
    return sorted(set(concepts()["objects"][name]["names"].values()))


def random_subject(name: str, rng: random.Random) -> str:
    """Draw a phrase for an object: its name, a foreign name, keywords alone, or the name with keywords."""
    entry = concepts()["objects"][name]
    kind = rng.random()
    words = entry["keywords"] + entry["context"]
    if kind < 0.35:
        return name
    if kind < 0.65 and entry["names"]:
        return rng.choice(list(entry["names"].values()))
    if kind < 0.72:
        return ", ".join([name, *rng.sample(words, min(len(words), 2))])
    if not entry["keywords"]:
        return " ".join(rng.sample(words, min(len(words), 3)))
    chosen = rng.sample(entry["keywords"], min(len(entry["keywords"]), rng.randint(1, 3)))
    return " ".join(chosen + rng.sample(entry["context"], min(len(entry["context"]), 3 - len(chosen))))


def random_caption(name: str, style: str, background: str, rng: random.Random) -> str:
    """Draw a training caption for one image; only a part of the captions names the style or the background."""
    words = [style, style, style, *concepts()["styles"][style]["keywords"]]
    named_background = background if background != "white" or rng.random() < 0.25 else ""
    return caption(
        random_subject(name, rng),
        rng.choice(TEMPLATES),
        rng.choice(words) if rng.random() < 0.6 else "",
        named_background,
    )


def list_captions(names: Sequence[str], kind: str = "object") -> list[str]:
    """Return captions of concepts that the miniature knows, by every synonym; of a style the objects in that style."""
    erased = [bare_name(name) for name in names]
    if kind == "style":
        return [caption(name, style=style) for style in styles() if style in erased for name in objects()]
    known = [name for name in objects() if name in erased]
    subjects = [subject for name in known for subject in (name, *foreign_synonyms(name), keyword_synonym(name))]
    return [caption(subject) for subject in dict.fromkeys(subjects)]


def retain_prompts(names: Sequence[str], kind: str = "object") -> list[str]:
    """Return the miniature's retained prompts: all other objects under several names, or objects in all other styles.

    Args:
        names: the concepts to erase.
        kind: "style" if they are styles.
    """
    erased = [bare_name(name) for name in names]
    if kind == "style":
        plain = [caption(name) for name in objects()]
        return plain + [caption(name, style=s) for name in objects() for s in styles() if s not in erased]
    others = [name for name in objects() if name not in erased]
    groups: list[list[tuple[str, str]]] = [
        [(name, style) for name, style in zip(others, cycle(("", *styles())), strict=False)],
        [(keyword_synonym(name), "") for name in others],
        [(name, "") for name in others],
        [(foreign_synonyms(name)[0], "") for name in others],
        [(name, style) for name, style in zip(others, cycle(styles()), strict=False)],
        [(foreign_synonyms(name)[-1], "") for name in others],
    ]
    # Group by group, so that every stretch of the list, and so a small bank, covers all objects.
    pairs = [pair for group in groups for pair in group]
    rows = [caption(subject, PLAIN[i % len(PLAIN)], style) for i, (subject, style) in enumerate(pairs)]
    words = {word for name in erased if name in objects() for word in (name, *foreign_synonyms(name))}
    return [row for row in rows if not words & set(row.replace(",", "").split())]
