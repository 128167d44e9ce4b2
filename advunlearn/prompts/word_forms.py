"""Match phrases in prompts: in singular and plural, however accents are encoded, and in scripts without spaces."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# Scripts whose words are not separated by spaces, or that attach particles to a noun: a name in them may stand
# anywhere. Kana, CJK ideographs and Hangul; Thai, Lao, Myanmar and Khmer.
UNSPACED = (
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
)
LATIN_ACCENTS = "(?<=[a-z])[\u0300-\u036f]+"


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, composed (NFKC) and without the accents of Latin letters.

    Marks belong to the letter before them; everything else that is neither letter nor digit separates words.
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = unicodedata.normalize("NFKC", re.sub(LATIN_ACCENTS, "", decomposed))
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in plain).split()


@functools.cache
def _inflection() -> Any:
    from pluralizer import Pluralizer

    return Pluralizer()


@functools.cache
def word_forms(word: str) -> frozenset[str]:
    """Return a word with its English singular and plural: "knife" and "knives", "people" and "person"."""
    if re.search(UNSPACED, word):
        return frozenset({word})
    english = _inflection()
    singular = english.singular(word)
    return frozenset({word, singular, english.plural(word), english.plural(singular)})


def phrase_forms(phrase: str) -> list[list[frozenset[str]]]:
    """Return the patterns of a phrase, each a list with the allowed forms of every word; [] for a phrase without words.

    The last word may be inflected, and the first of "church of england".
    """
    words = split_words(phrase)
    if not words:
        return []
    exact = [frozenset({word}) for word in words]
    patterns = [[*exact[:-1], word_forms(words[-1])]]
    if len(words) > 2 and words[1] in ("of", "in"):
        patterns.append([word_forms(words[0]), *exact[1:]])
    return patterns


def contains_pattern(words: Sequence[str], pattern: Sequence[frozenset[str]]) -> bool:
    """Return whether words in a row fit a pattern of `phrase_forms`."""
    starts = range(len(words) - len(pattern) + 1)
    return any(all(words[start + i] in forms for i, forms in enumerate(pattern)) for start in starts)


def is_same_phrase(phrase: str, other: str) -> bool:
    """Return whether two phrases differ at most by singular and plural, case and accents."""
    words = split_words(other)
    return any(len(pattern) == len(words) and contains_pattern(words, pattern) for pattern in phrase_forms(phrase))


def find_phrases(prompts: Iterable[str], phrases: Iterable[str]) -> list[bool]:
    """Return for each prompt whether it contains one of the phrases, that is all of its words in a row.

    Words match in full, in singular or plural. A phrase in a script without spaces matches inside a word as well.
    """
    patterns: list[list[frozenset[str]]] = []
    unspaced: list[str] = []
    for phrase in phrases:
        patterns += phrase_forms(phrase)
        if re.search(UNSPACED, phrase):
            unspaced.append("".join(split_words(phrase)))
    found = []
    for prompt in prompts:
        words = split_words(prompt)
        found.append(
            any(contains_pattern(words, pattern) for pattern in patterns)
            or any(text in "".join(words) for text in unspaced)
        )
    return found
