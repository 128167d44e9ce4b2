"""The other names of a concept: what anybody can type who knows another word for it."""

from __future__ import annotations

import pathlib

from ..config.concept import ConceptConfig, bare_name
from ..miniature import captions
from . import retain

FILE = pathlib.Path(__file__).with_suffix(".csv")


def shipped(concept: ConceptConfig) -> list[str]:
    """Return the names that ship with the library, for concepts that are often erased; [] for all others."""
    names = set(map(bare_name, concept.names))
    pairs = (line.split("|") for line in retain.lines(FILE.read_text(encoding="utf-8")))
    return [route.strip() for name, route in pairs if name.strip() in names]


def of_miniature(concept: ConceptConfig) -> list[str]:
    """Return the miniature's own names: foreign ones, keywords together, then each keyword; for a style its words."""
    found: list[str] = []
    for name in map(bare_name, concept.names):
        if concept.kind == "style":
            found += captions.concepts()["styles"].get(name, {}).get("keywords", [])
        elif name in captions.concepts()["objects"]:
            words = captions.concepts()["objects"][name]["keywords"]
            found += [*captions.foreign_routes(name), captions.keyword_route(name), *words]
    return list(dict.fromkeys(found))
