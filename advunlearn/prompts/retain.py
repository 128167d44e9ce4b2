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

SHIPPED_SETS = ("coco", "imagenet")


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
        prompts += remove_phrases(captions.retain_prompts(concept.names, concept.kind), left_out or ())
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
    truck" does not leave out "a truck".
    """
    wanted = [re.findall(r"\w+", phrase.lower()) for phrase in phrases]
    pattern = "|".join(rf"\b{_phrase_pattern(words)}\b" for words in wanted if words)
    return [prompt for prompt in prompts if not pattern or not re.search(pattern, prompt.lower())]


def _phrase_pattern(words: Sequence[str]) -> str:
    """Return a pattern for a phrase whose last word may be singular or plural."""
    last = words[-1]
    singular = [last.removesuffix(end) for end in ("s", "es") if len(last) > 3 and last.endswith(end)]
    forms = "|".join(map(re.escape, [last, *singular]))
    return r"\W+".join([*map(re.escape, words[:-1]), f"(?:{forms})(?:s|es)?"])


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
