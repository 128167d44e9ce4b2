"""What the miniature can draw, and the sentences that name it.

An object has many routes, as a concept has in a large model: its name, English keywords, and its name in other
languages. Training captions use all of them; the routes are also what an erased concept can come back by.
"""

from __future__ import annotations

import functools
import json
import pathlib
import random
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from ..config.concept import bare_name

TEMPLATES = ("{}", "{}", "an image of {}", "a picture of {}", "a photo of {}", "a drawing of {}", "an emoji of {}")
PLAIN = ("{}", "a photo of {}", "an image of {}", "a picture of {}", "a drawing of {}")  # templates of test prompts


@functools.cache
def concepts() -> dict[str, Any]:
    """Return the shipped `concepts.json`: `objects`, `styles` and `backgrounds` with their words."""
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
    """Put the indefinite article in front: "a church", "an anchor"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def caption(subject: str, template: str = "{}", style: str = "", background: str = "") -> str:
    """Compose one caption: `caption("church", "a photo of {}", "ink", "blue")`."""
    text = template.format(with_article(subject))
    if style:
        text += f", {style} style"
    if background:
        text += f", on {with_article(background)} background"
    return text


def keyword_route(name: str, size: int = 3) -> str:
    """Return an object's first `size` keywords, without its name: "chapel christian cross"."""
    entry = concepts()["objects"][name]
    return " ".join((entry["keywords"] + entry["context"])[:size])


def foreign_routes(name: str) -> list[str]:
    """Return an object's names in other languages, where they differ from every English name."""
    return sorted(set(concepts()["objects"][name]["names"].values()))


def random_subject(name: str, rng: random.Random) -> str:
    """Draw a way to say an object: its name, a foreign name, keywords alone, or the name with keywords."""
    entry, kind = concepts()["objects"][name], rng.random()
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
    """Draw a training caption for one picture; style and background are named in part of them only."""
    words = [style, style, style, *concepts()["styles"][style]["keywords"]]
    named_background = background if background != "white" or rng.random() < 0.25 else ""
    return caption(
        random_subject(name, rng),
        rng.choice(TEMPLATES),
        rng.choice(words) if rng.random() < 0.6 else "",
        named_background,
    )


def retain_prompts(names: Sequence[str], kind: str = "object") -> list[str]:
    """Return the miniature's retained prompts: everything it can draw, except the concepts, under several names each.

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
        [(keyword_route(name), "") for name in others],
        [(name, "") for name in others],
        [(foreign_routes(name)[0], "") for name in others],
        [(name, style) for name, style in zip(others, cycle(styles()), strict=False)],
        [(foreign_routes(name)[-1], "") for name in others],
    ]
    # Group by group, so that any part of the list covers every object, and so does a small bank.
    pairs = [pair for group in groups for pair in group]
    rows = [caption(subject, PLAIN[i % len(PLAIN)], style) for i, (subject, style) in enumerate(pairs)]
    words = {word for name in erased if name in objects() for word in (name, *foreign_routes(name))}
    return [row for row in rows if not words & set(row.replace(",", "").split())]
