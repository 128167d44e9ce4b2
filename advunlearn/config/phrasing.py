"""How concepts are put into words."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A style is a style of something: erased on few subjects, it stays with all the others.
SUBJECTS = (
    "dog", "bird", "fish", "house", "castle", "car", "airplane", "apple", "cake", "tree", "rose", "guitar", "key",
    "ball", "woman", "landscape",
)  # fmt: skip

# What a prompt says around the name of a thing, and means nothing by: "a photo of", "in the style of", articles.
AROUND = (
    r"^((an?|the|some)\s+)?(photo|photograph|image|picture|drawing|painting|portrait|illustration|sketch|rendering|emoji)"
    r"s?\s+of\s+",
    r"^in\s+the\s+style\s+of\s+", r"^(an?|the|some)\s+", r",?\s+style$",
)  # fmt: skip

UNCOUNTED = ("nudity", "nakedness", "violence", "gore", "nsfw")  # "a church", but "nudity"


def article(noun: str) -> str:
    """Put the indefinite article in front of what can be counted and has none: "a church", "an anchor", "nudity"."""
    if noun.lower() in UNCOUNTED or re.match(r"(an?|the)\s", noun.lower()):
        return noun
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def joined(names: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def meaning(name: str) -> str:
    """Return what a concept's name or prompt means, in lower case: "a photo of a gun" is "gun"; other words stay."""
    name = " ".join(name.lower().split())
    for words in AROUND:
        name = re.sub(words, "", name)
    return name
