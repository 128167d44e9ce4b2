"""Retain sets: prompts whose meaning must not change while a concept is erased."""

from __future__ import annotations

import pathlib
import re
import zlib
from collections.abc import Iterable, Sequence

from ..config.concept import ConceptConfig, bare_name
from ..miniature import captions
from .co_occurring import co_occurring_words
from .prompt_files import read_prompts
from .word_forms import find_phrases, is_same_phrase

SHIPPED_SETS = ("coco", "imagenet")


def resolve_retain_set(name: str, is_miniature: bool) -> str:
    """Return the retain set that "auto" stands for, or the name itself."""
    if name != "auto":
        return name
    return "miniature" if is_miniature else "coco"


def make_retain_prompts(
    concept: ConceptConfig, retain_set: str, own: Sequence[str] = (), left_out: Sequence[str] | None = None
) -> list[str]:
    """Return the retained prompts of a run: the user's own lines, then the chosen set.

    The own lines come first because a bank may be too small to hold all prompts.

    Args:
        concept: what is erased; prompts of the set that name it are left out.
        retain_set: one of `SHIPPED_SETS`, "miniature" (what the miniature can draw), or "none" (the own lines only).
        own: the user's own lines; they are shuffled, see `shuffle`.
        left_out: phrases; all prompts that contain one are left out, the user's own too. By default a shipped set
            lacks what co-occurs with the concept, see `co_occurring_words`.
    """
    prompts = remove_phrases(shuffle(own), left_out or ())
    if retain_set == "miniature":
        prompts += remove_phrases(captions.retain_prompts(miniature_names(concept), concept.kind), left_out or ())
    elif retain_set != "none":
        prompts += shipped_prompts(concept.names, retain_set, left_out)
    return prompts


def shipped_prompts(names: Sequence[str], retain_set: str = "coco", left_out: Sequence[str] | None = None) -> list[str]:
    """Return a shipped set for concepts with these names, shuffled.

    Args:
        names: the concepts; prompts that name one are left out ("a photo of a gun" is the concept gun).
        retain_set: one of `SHIPPED_SETS`.
        left_out: further phrases to leave out; by default what co-occurs with the concepts.
    """
    phrases = [*map(bare_name, names), *(co_occurring_words(names) if left_out is None else left_out)]
    return shuffle(remove_phrases(all_prompts(retain_set), phrases))


def remove_phrases(prompts: Iterable[str], phrases: Iterable[str]) -> list[str]:
    """Leave out the prompts that contain one of the phrases, that is all of its words in a row.

    Words match in full, in singular or plural: "dog" and "dogs" both leave out "Hot dogs" but not "a dogma"; "garbage
    truck" does not leave out "a truck"; "knife" leaves out "knives". See `word_forms`.
    """
    prompts = list(prompts)
    return [prompt for prompt, hit in zip(prompts, find_phrases(prompts, phrases), strict=True) if not hit]


def list_left_out(
    concept: ConceptConfig, retain_set: str, own: Sequence[str] = (), left_out: Sequence[str] | None = None
) -> list[str]:
    """Return the prompts that `make_retain_prompts` leaves out, with the same arguments.

    Of the miniature's prompts these are the captions that name the concept or one of its synonyms.
    """
    kept = set(make_retain_prompts(concept, retain_set, own, left_out))
    candidates = list(own)
    if retain_set == "miniature":
        names = miniature_names(concept)
        candidates += captions.list_captions(names, concept.kind) + captions.retain_prompts(names, concept.kind)
    elif retain_set != "none":
        candidates += all_prompts(retain_set)
    return [prompt for prompt in dict.fromkeys(candidates) if prompt not in kept]


def miniature_names(concept: ConceptConfig) -> list[str]:
    """Return the concepts by their names in the miniature: "churches" is its "church"; others stay as they are."""
    known = captions.styles() if concept.kind == "style" else captions.objects()
    return [
        next((other for other in known if bare_name(name) != other and is_same_phrase(bare_name(name), other)), name)
        for name in concept.names
    ]


def shuffle(prompts: Sequence[str]) -> list[str]:
    """Order prompts by a hash of each; the first stays first, because training draws samples of it.

    A bank takes prompts from the beginning of the list. ImageNet's classes begin with 398 animals: unshuffled, a small
    bank would retain nothing else. Shuffled prompts stay as they are.
    """
    return [*prompts[:1], *sorted(prompts[1:], key=lambda prompt: zlib.crc32(prompt.encode()))]


def all_prompts(retain_set: str = "coco") -> list[str]:
    """Return all prompts of a shipped set: "a photo of a <class>"."""
    return [f"a photo of {name}" for name in _read_names(retain_set)]


def class_names(retain_set: str = "coco") -> list[str]:
    """Return the class names of a shipped set without articles: "person", "bicycle", ..."""
    return [re.sub(r"^an? ", "", name) for name in _read_names(retain_set)]


def _read_names(retain_set: str) -> list[str]:
    return read_prompts(pathlib.Path(__file__).parent / f"{retain_set}.csv")
