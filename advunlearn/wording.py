"""How concepts are put into words."""

from __future__ import annotations

from collections.abc import Sequence

# A style is a style of something: erased on few subjects, it stays with all the others.
SUBJECTS = (
    "dog", "bird", "fish", "house", "castle", "car", "airplane", "apple", "cake", "tree", "rose", "guitar", "key",
    "ball", "woman", "landscape",
)  # fmt: skip

UNCOUNTED = ("nudity", "nakedness", "violence", "gore", "nsfw")  # "a church", but "nudity"


def article(noun: str) -> str:
    """Put the indefinite article in front of what can be counted: "a church", "an anchor", "nudity"."""
    if noun.lower() in UNCOUNTED:
        return noun
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def joined(names: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
