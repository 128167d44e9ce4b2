"""Synonyms: other names of a concept, which anybody can type who knows another word for it.

The shipped ones are of concepts that are often erased. All are safe for work.
"""

from __future__ import annotations

import pathlib

from ..config.concept import ConceptConfig, bare_name
from ..miniature import captions
from .prompt_files import read_rows

FILE = pathlib.Path(__file__).with_suffix(".csv")


def shipped_synonyms(concept: ConceptConfig) -> list[str]:
    """Return the synonyms shipped for concepts that are often erased; [] for all others."""
    names = {bare_name(name) for name in concept.names}
    return [row["prompt"] for row in read_rows(FILE) if row["concept"] in names]


def miniature_synonyms(concept: ConceptConfig) -> list[str]:
    """Return the synonyms that the miniature knows.

    For an object these are its foreign names, its keywords together, and each keyword; for a style its keywords.
    """
    words: list[str] = []
    for name in map(bare_name, concept.names):
        if concept.kind == "style":
            styles = captions.concepts()["styles"]
            words += styles[name]["keywords"] if name in styles else []
        elif name in captions.concepts()["objects"]:
            keywords = captions.concepts()["objects"][name]["keywords"]
            words += [*captions.foreign_synonyms(name), captions.keyword_synonym(name), *keywords]
    return list(dict.fromkeys(words))
