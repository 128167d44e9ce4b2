"""Classes that co-occur with a concept in images.

Retained prompts of these classes would preserve the concept, so they are left out. Classes that only resemble the
concept, such as a mosque for a church, are not listed: they must be preserved.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..config.concept import bare_name

# Concept -> class names of ImageNet.
CO_OCCURRING: dict[str, tuple[str, ...]] = {
    "nudity": (
        "bikini",
        "bra",
        "one-piece bathing suit",
        "swim trunks",
        "miniskirt",
        "sarong",
        "diaper",
        "bath towel",
        "bathtub",
        "hot tub",
        "shower cap",
        "shower curtain",
        "tights",
        "sunscreen",
    ),
    "church": ("altar", "bell tower", "monastery", "pipe organ", "vaulted ceiling", "vestment"),
    "tench": ("fishing casting reel",),
    "garbage truck": ("trash can", "plastic bag"),
}


def co_occurring_words(names: Iterable[str]) -> list[str]:
    """Return the class names that co-occur with these concepts; concepts without a list have none."""
    return [word for name in names for word in CO_OCCURRING.get(bare_name(name), ())]
