"""The prompts of an evaluation: plain, by other routes, and of what is to be retained."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, islice
from typing import Any

from torch import Tensor

from ..config.concept import ConceptConfig
from ..errors import AdvUnlearnError
from ..judges.base import Judge
from ..judges.convnet import ConvJudge
from ..miniature import captions
from ..miniature.captions import PLAIN
from ..prompts.co_occurring import co_occurring_words
from .metrics import count as counted
from .user_prompts import UserPrompt
from .user_prompts import labelled as parsed


@dataclass(frozen=True)
class Labelled:
    """A prompt and what its picture should show."""

    prompt: str
    object: str  # the judge's label; "" where none was given
    style: str = ""
    seed: int | None = None  # of its noise, where it has one of its own


@dataclass(frozen=True)
class Cases:
    """Everything that is asked of one concept."""

    plain: list[str]
    foreign: list[str]
    keywords: list[str]
    retained: list[Labelled]  # everything else, the neighbours included
    neighbours: list[Labelled]  # the concept's own family; for a style, the other styles
    co_occurring: list[Labelled] = field(default_factory=list)  # what is seen together with the concept, by its words
    seeds: list[int | None] = field(default_factory=list)  # of the plain prompts' noise; [] where none has its own
    concepts: tuple[str, ...] = ("",)  # the plain prompts ask for them in turn
    kind: str = "object"  # what a neighbour is judged by: its object or its style

    def by_concept(self, found: Tensor) -> dict[str, Any]:
        """Return the parts of what was found in the plain prompts (N,) that are of each concept, where several are."""
        size = len(self.concepts)
        return {"by": {name: counted(found[i::size]) for i, name in enumerate(self.concepts)}} if size > 1 else {}


def _fill(prompts: Sequence[str], count: int) -> list[str]:
    return list(islice(cycle(prompts), count)) if prompts else []


def object_cases(name: str, judge: ConvJudge, count: int, repeats: int) -> Cases:
    """Return the cases of an object: `count` plain prompts and `count` by other routes, half foreign, half keywords."""
    entries = captions.concepts()["objects"]
    plain = [captions.caption(name, template) for template in PLAIN]
    plain += [captions.caption(name, style=style) for style in judge.styles]
    plain += [captions.caption(name, background=colour) for colour in judge.backgrounds[1:]]
    foreign = [captions.caption(word) for word in captions.foreign_routes(name)] if name in entries else []
    keywords = [captions.caption(captions.keyword_route(name), t) for t in PLAIN] if name in entries else []
    others = [o for o in judge.objects if o != name]
    retained = [
        Labelled(captions.caption(other, style=style), other, style)
        for i, other in enumerate(others)
        for style in [judge.styles[(i + r) % len(judge.styles)] for r in range(repeats)]
    ]
    family = {o for o in others if name in entries and entries[o]["family"] == entries[name]["family"]}
    neighbours = [row for row in retained if row.object in family]
    by_words = [Labelled(captions.caption(captions.keyword_route(o)), o) for o in others if o in family]
    return Cases(
        _fill(plain, count),
        _fill(foreign, count - count // 2),
        _fill(keywords, count // 2),
        retained,
        neighbours,
        [row for row in by_words for _ in range(repeats)],
    )


def style_cases(name: str, judge: ConvJudge, count: int, repeats: int) -> Cases:
    """Return the cases of a style: the objects drawn in it by its name, and by its other words."""
    objects = judge.objects
    others = [s for s in judge.styles if s != name]
    words = captions.concepts()["styles"][name]["keywords"]
    plain = [captions.caption(o, style=name) for o in objects]
    keywords = [captions.caption(o, style=words[i % len(words)]) for i, o in enumerate(objects[1:] + objects[:1])]
    retained = [
        Labelled(captions.caption(o, style=others[(i + r) % len(others)]), o, others[(i + r) % len(others)])
        for i, o in enumerate(objects)
        for r in range(repeats)
    ]
    return Cases(_fill(plain, count), [], _fill(keywords, count), retained, retained, kind="style")


def plain_prompts(concept: ConceptConfig) -> list[str]:
    """Return the sentences that name a concept, for models that know more than the miniature."""
    if concept.kind == "style":
        return list(concept.prompts)
    return [template.format(prompt) for prompt in concept.prompts for template in PLAIN]


def labelled(lines: Sequence[str | UserPrompt], judge: Judge) -> list[Labelled]:
    """Return what is asked, of lines "prompt | label" too; without a label only the feature distance counts a picture.

    Raises AdvUnlearnError for a label that the judge does not know, and for a line without a prompt.
    """
    rows = [parsed(line) if isinstance(line, str) else line for line in lines]
    return [Labelled(row.prompt, judge.label(row.label) if row.label else "", seed=row.seed) for row in rows]


def co_occurring(concept: ConceptConfig, judge: Judge) -> list[Labelled]:
    """Return prompts of what is seen together with a concept, as far as it is known and the judge can see it."""
    rows = []
    for word in co_occurring_words(concept.names):
        with contextlib.suppress(AdvUnlearnError):  # most judges know few of these words
            rows.append(Labelled(f"a photo of the {word}", judge.label(word)))
    return rows


def make_cases(
    concept: ConceptConfig,
    judge: Judge,
    count: int,
    repeats: int,
    prompts: Sequence[str | UserPrompt] = (),
    retained: Sequence[str | UserPrompt] = (),
) -> Cases:
    """Return the cases of a concept.

    Args:
        concept: what was erased.
        judge: the miniature's brings its own routes and retained rows; others bring none.
        count: attacked cases: prompts times seeds.
        repeats: pictures of each retained row.
        prompts: the user's own, in place of all that are made from the concept; their labels do not count.
        retained: the user's own, see `labelled`. A row with a seed has one picture, others `repeats`.

    Raises AdvUnlearnError when the judge does not know the concept or a label, or for more prompts than cases.
    """
    labels = [judge.concept_label(one) for one in concept.each]
    if len(labels) > count:
        raise AdvUnlearnError(f"there are {len(labels)} concepts and {count} cases; raise cases to {len(labels)}")
    if len(prompts) > count:
        raise AdvUnlearnError(f"there are {len(prompts)} prompts and {count} cases; raise cases to {len(prompts)}")
    each = [_cases_of(one, label, judge, count, repeats) for one, label in zip(concept.each, labels, strict=True)]
    cases = each[0] if len(each) == 1 else together(each, concept.names, labels)
    if prompts:
        asked = [UserPrompt(row) if isinstance(row, str) else row for row in prompts]
        seeds = [row.seed for row in asked] + [None] * (count - len(asked))  # a prompt's second case is of other noise
        plain = _fill([row.prompt for row in asked], count)
        cases = replace(cases, plain=plain, seeds=seeds, foreign=[], keywords=[], concepts=("",))
    if retained:
        rows = labelled(retained, judge)
        times = (repeats if row.seed is None else min(repeats, 1) for row in rows)
        rows = [row for row, many in zip(rows, times, strict=True) for _ in range(many)]
        cases = replace(cases, retained=rows, neighbours=[])
    return cases


def _cases_of(concept: ConceptConfig, label: str, judge: Judge, count: int, repeats: int) -> Cases:
    """Return the cases of one concept, which has this label."""
    if not isinstance(judge, ConvJudge):
        near = [row for row in co_occurring(concept, judge) for _ in range(repeats)]
        return Cases(_fill(plain_prompts(concept), count), [], [], [], [], near)
    make = object_cases if label in judge.objects else style_cases
    return make(label, judge, count, repeats)


def together(each: Sequence[Cases], names: Sequence[str], labels: Sequence[str]) -> Cases:
    """Return as many cases of several concepts in turn, and what is retained: nothing that is one of them."""

    def in_turn(rows: Sequence[list[str]]) -> list[str]:
        some = [row for row in rows if row]
        return list(islice(chain.from_iterable(zip(*some, strict=False)), min(map(len, some), default=0)))

    retained = [row for row in each[0].retained if {row.object, row.style}.isdisjoint(labels)]
    near = {row.object for cases in each for row in cases.neighbours}
    by_words: list[Labelled] = []
    for cases in each:
        known = {*labels, *(row.object for row in by_words)}
        by_words += [row for row in cases.co_occurring if row.object not in known]
    return Cases(
        in_turn([c.plain for c in each]),
        in_turn([c.foreign for c in each]),
        in_turn([c.keywords for c in each]),
        retained,
        [row for row in retained if row.object in near],
        by_words,
        concepts=tuple(names),
        kind=each[0].kind,
    )
