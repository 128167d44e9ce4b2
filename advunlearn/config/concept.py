"""The concept to erase, and how it is put into prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import AdvUnlearnError
from .base import Validated, setting
from .lists import SEPARATORS, normalize, strip_list_marks

# A style is a style of something: erased on few subjects, it stays with all the others.
SUBJECTS = (
    "dog",
    "bird",
    "fish",
    "house",
    "castle",
    "car",
    "airplane",
    "apple",
    "cake",
    "tree",
    "rose",
    "guitar",
    "key",
    "ball",
    "woman",
    "landscape",
)

# Words around a concept's name that do not change what is meant: "a photo of", "in the style of", articles.
FRAMING = (
    r"^((an?|the|some)\s+)?(photo|photograph|image|picture|drawing|painting|portrait|illustration|sketch|rendering|emoji)"
    r"s?\s+of\s+",
    r"^in\s+the\s+style\s+of\s+",
    r"^(an?|the|some)\s+",
    r",?\s+style$",
)

# A list of concepts: pairs of quotes, and words and signs that may make a list.
QUOTES = (('"', '"'), ("\u201c", "\u201d"), ("\u300c", "\u300d"), ("\u300e", "\u300f"), ("\xab", "\xbb"))
# A single quote may be an apostrophe: it counts around a complete name only.
SINGLE_QUOTED = rf"(?<![^{SEPARATORS}\s])['\u2018][^'\u2018\u2019]*['\u2019](?=\s*(?:[{SEPARATORS}]|$))"
QUOTED = "|".join([*(f"{start}[^{end}]*{end}" for start, end in QUOTES), SINGLE_QUOTED])
ITEM = rf"(?:{QUOTED}|[^{SEPARATORS}])+"
# English, German, French, Spanish, Chinese, Japanese.
CONJUNCTION_WORDS = r"and|or|und|oder|et|ou|y|\u548c|\u4e0e|\u8207|\u6216|\u3068|&|\+|\xb7"
CONJUNCTION = (
    rf"(?i:\s+(?:{CONJUNCTION_WORDS})(?:\s+|$))"
    r"|\s*[/|\\\t\u2022\u30fb\uff65]\s*"
    r"|(?<=\w{3})&(?=\w{3})"  # but not "R&B"
)

UNCOUNTABLE = ("nudity", "nakedness", "violence", "gore", "nsfw")  # "a church", but "nudity"


def article(noun: str) -> str:
    """Add an indefinite article unless there is one or the noun is uncountable: "a church", "an anchor", "nudity"."""
    if noun.lower() in UNCOUNTABLE or re.match(r"(an?|the)\s", noun.lower()):
        return noun
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def joined_names(names: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def split_names(text: str) -> tuple[str, ...]:
    """Split a list of concepts at commas, semicolons (of any width) and lines; quotes protect what is between them.

    Quotes around a complete name are removed, and so are bullets, brackets around the list, and invisible characters.
    "and" behind a comma, as in "a, b, and c", is part of the list.

    Raises AdvUnlearnError for a quote that is not closed, and for an unquoted name that may be a list ("a and b").
    """
    names = []
    for line in strip_list_marks(normalize(text)).splitlines():
        if mark := re.search(f"[{''.join(map(''.join, QUOTES))}]", re.sub(QUOTED, "", line)):
            raise AdvUnlearnError(f"concept {line.strip()!r}: the quote {mark[0]} is not closed; close it or remove it")
        for i, item in enumerate(re.findall(ITEM, line)):
            name = item.strip()
            if re.fullmatch(QUOTED, name):
                name = name[1:-1].strip()
            else:
                # Capitals may begin a title that is a name, such as "ET the alien".
                name = re.sub(rf"^(?:{CONJUNCTION_WORDS}|AND|And|OR|Or)\s+", "", name) if i else name
                check_one_concept(name)
            names += [name] * bool(name)
    return tuple(names)


def check_one_concept(name: str) -> None:
    """Raise AdvUnlearnError for an unquoted name that could mean several concepts: "a and b", "a/b"."""
    if re.search(CONJUNCTION, re.sub(QUOTED, "x", name)):
        several = ", ".join(filter(None, re.split(CONJUNCTION, name)))
        raise AdvUnlearnError(
            f"concept {name!r} may be one concept or several; for several separate them by commas: {several}; for one "
            f"put it in quotes: {enclose(name)} (in a shell in quotes twice: '{enclose(name)}')"
        )


def enclose(name: str) -> str:
    """Put a name in quotes that it does not contain."""
    start, end = next((pair for pair in QUOTES if not set(pair) & set(name)), QUOTES[0])
    return start + name + end


def quote_name(name: str) -> str:
    """Return a name in such a form that `split_names` returns it as one."""
    try:
        return name if split_names(name) == (name,) else enclose(name)
    except AdvUnlearnError:
        return enclose(name)


def bare_name(name: str) -> str:
    """Strip framing words and lower the case: "a photo of a gun" becomes "gun"."""
    name = " ".join(name.lower().split())
    for pattern in FRAMING:
        name = re.sub(pattern, "", name)
    return name


@dataclass(frozen=True, kw_only=True)
class ConceptConfig(Validated):
    """One or several concepts to erase, and the prompts that name them during training."""

    concept: str = setting(
        "church",
        "the concept to erase, as a prompt would name it; several: separate them by commas, semicolons or lines, and "
        "put a name that has one in quotes (kind prompt: one prompt per line, used verbatim)",
    )
    kind: Literal["object", "style", "prompt"] = setting(
        "object", "kind of concept: an object in the image, a style, or a prompt that is used verbatim"
    )
    negative_guidance: float = setting(
        1.0, "eta of eq. (3): how far the training target is pushed away from the concept", 0, 20
    )
    schedule: Literal["mixed", "round_robin", "joined"] = setting(
        "mixed",
        "several concepts: mixed draws one at random for each sample; round_robin takes one per iteration, in turn; "
        "joined puts all of them into one prompt (a, b and c)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.concept.strip():
            raise AdvUnlearnError("concept is empty; name the concept to erase, for example church")
        if not self.names:
            raise AdvUnlearnError(f"concept is {self.concept!r}, which names nothing; name the concept to erase")

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts: the lines of `concept` for prompts, otherwise as `split_names` reads it."""
        if self.kind == "prompt":
            return tuple(line.strip() for line in self.concept.splitlines() if line.strip())
        return split_names(self.concept)

    @property
    def name(self) -> str:
        """All concepts as one phrase, without quotes: "a, b and c"."""
        return joined_names(self.names)

    @property
    def each(self) -> tuple[ConceptConfig, ...]:
        """One configuration per concept."""
        quote = str if self.kind == "prompt" else quote_name
        return tuple(replace(self, concept=quote(name)) for name in self.names)

    @property
    def subjects(self) -> tuple[str, ...]:
        """What a style is erased on."""
        return SUBJECTS

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The clean prompts, grouped by concept; joined concepts form one group."""
        nouns = self.names if self.kind != "object" else tuple(map(article, self.names))
        concepts = (joined_names(nouns),) if self.schedule == "joined" else nouns
        if self.kind == "style":
            return tuple(tuple(f"{article(subject)}, {name} style" for subject in self.subjects) for name in concepts)
        return tuple((name,) for name in concepts)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The clean prompts that training erases and attacks; each sample uses one of them, drawn at random."""
        return tuple(prompt for group in self.groups for prompt in group)

    @property
    def anchors(self) -> tuple[str, ...]:
        """The prompt that replaces each of `prompts` in eq. (3): the empty one, or a style's subject without style."""
        if self.kind == "style":
            return tuple(article(subject) for _ in self.groups for subject in self.subjects)
        return ("",) * len(self.prompts)

    def prompts_in_turn(self, turn: int) -> range | None:
        """Return the indices of the prompts in use at a turn (from 0); None means all of them."""
        if self.schedule != "round_robin":
            return None
        size = len(self.groups[0])
        first = turn % len(self.groups) * size
        return range(first, first + size)
