"""The prompts of an evaluation: plain prompts, synonyms, and retained prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, islice

from ..config.concept import ConceptConfig
from ..errors import AdvUnlearnError
from ..judges.base import Judge
from ..judges.convnet import ConvJudge
from ..miniature import captions
from ..miniature.captions import PLAIN
from ..prompts.co_occurring import co_occurring_words
from .user_prompts import UserPrompt, parse_labelled_prompt


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt and the labels that its image should have."""

    prompt: str
    object: str  # the judge's label; "" for none
    style: str = ""
    seed: int | None = None  # of its noise, if it has its own
    either: str = ""  # an object that may be seen instead of `object`
    background: str = ""


@dataclass(frozen=True)
class Cases:
    """All prompts of the evaluation of one concept or several."""

    plain: list[str]
    foreign: list[str]  # synonyms: foreign words
    keywords: list[str]  # synonyms: keywords
    retained: list[LabelledPrompt]  # everything else, including the neighbours
    neighbours: list[LabelledPrompt]  # the concept's own family; for a style, the other styles
    co_occurring: list[LabelledPrompt] = field(default_factory=list)  # things seen together with the concept
    seeds: list[int | None] = field(default_factory=list)  # of the plain prompts' noise; [] if none has its own
    concepts: tuple[str, ...] = ("",)  # the plain prompts name them in turn
    kind: str = "object"  # "object" or "style": the label by which neighbours are judged
    compositions: dict[str, list[LabelledPrompt]] = field(default_factory=dict)  # by kind, see `make_compositions`

    def all_prompts(self) -> list[str]:
        """Return every prompt of the evaluation."""
        rows = chain(self.retained, self.neighbours, self.co_occurring, *self.compositions.values())
        labelled = [row.prompt for row in rows]
        return [*self.plain, *self.foreign, *self.keywords, *labelled]


def repeat_prompts(prompts: Sequence[str], count: int) -> list[str]:
    """Return `count` prompts, from the beginning again after the last; [] if there are none."""
    return list(islice(cycle(prompts), count)) if prompts else []


def make_object_cases(name: str, judge: ConvJudge, count: int, repeats: int) -> Cases:
    """Return the cases of an object: `count` plain prompts and `count` synonyms, half foreign, half keywords."""
    entries = captions.concepts()["objects"]
    plain = [captions.caption(name, template) for template in PLAIN]
    plain += [captions.caption(name, style=style) for style in judge.styles]
    plain += [captions.caption(name, background=colour) for colour in judge.backgrounds[1:]]
    foreign = [captions.caption(word) for word in captions.foreign_synonyms(name)] if name in entries else []
    keywords = [captions.caption(captions.keyword_synonym(name), t) for t in PLAIN] if name in entries else []
    others = [other for other in judge.objects if other != name]
    retained = [
        LabelledPrompt(captions.caption(other, style=style), other, style)
        for i, other in enumerate(others)
        for style in [judge.styles[(i + r) % len(judge.styles)] for r in range(repeats)]
    ]
    family = {o for o in others if name in entries and entries[o]["family"] == entries[name]["family"]}
    related = [LabelledPrompt(captions.caption(captions.keyword_synonym(o)), o) for o in others if o in family]
    return Cases(
        plain=repeat_prompts(plain, count),
        foreign=repeat_prompts(foreign, count - count // 2),
        keywords=repeat_prompts(keywords, count // 2),
        retained=retained,
        neighbours=[row for row in retained if row.object in family],
        co_occurring=[row for row in related for _ in range(repeats)],
    )


def make_style_cases(name: str, judge: ConvJudge, count: int, repeats: int) -> Cases:
    """Return the cases of a style: the objects in that style, by its name and by its keywords."""
    objects = judge.objects
    others = [style for style in judge.styles if style != name]
    words = captions.concepts()["styles"][name]["keywords"]
    plain = [captions.caption(o, style=name) for o in objects]
    keywords = [captions.caption(o, style=words[i % len(words)]) for i, o in enumerate(objects[1:] + objects[:1])]
    retained = [
        LabelledPrompt(captions.caption(o, style=others[(i + r) % len(others)]), o, others[(i + r) % len(others)])
        for i, o in enumerate(objects)
        for r in range(repeats)
    ]
    return Cases(
        plain=repeat_prompts(plain, count),
        foreign=[],
        keywords=repeat_prompts(keywords, count),
        retained=retained,
        neighbours=retained,
        kind="style",
    )


def make_plain_prompts(concept: ConceptConfig) -> list[str]:
    """Return prompts that name a concept, for other models than the miniature."""
    if concept.kind == "style":
        return list(concept.prompts)
    return [template.format(prompt) for prompt in concept.prompts for template in PLAIN]


def label_prompts(lines: Sequence[str | UserPrompt], judge: Judge) -> list[LabelledPrompt]:
    """Return a user's retained prompts with the judge's labels; a string is a line "prompt | label" or a prompt.

    The image of a prompt without a label counts only in the distances between sets of images.

    Raises AdvUnlearnError for a label that the judge does not know, and for a line without a prompt.
    """
    rows = [parse_labelled_prompt(line) if isinstance(line, str) else line for line in lines]
    return [LabelledPrompt(row.prompt, judge.label(row.label) if row.label else "", seed=row.seed) for row in rows]


def make_co_occurring_prompts(concept: ConceptConfig, judge: Judge) -> list[LabelledPrompt]:
    """Return prompts of things that are seen together with a concept, as far as the judge knows them."""
    rows = []
    for word in co_occurring_words(concept.names):
        with contextlib.suppress(AdvUnlearnError):  # most judges know few of these words
            rows.append(LabelledPrompt(f"a photo of the {word}", judge.label(word)))
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
        concept: the erased concept, or several.
        judge: the miniature's judge comes with synonyms and retained prompts; other judges have none.
        count: number of attacked cases: prompts times seeds.
        repeats: number of images of each retained prompt.
        prompts: the user's own prompts, instead of those made from the concept; their labels are ignored.
        retained: the user's own retained prompts, see `label_prompts`. One with a seed has a single image.

    Raises AdvUnlearnError if the judge does not know the concept or a label, or if there are more prompts than cases.
    """
    labels = [judge.concept_label(one) for one in concept.each]
    for what, number in (("concepts", len(labels)), ("prompts", len(prompts))):
        if number > count:
            raise AdvUnlearnError(f"there are {number} {what} and {count} cases; raise cases to {number}")
    each = [_cases_of_one(one, label, judge, count, repeats) for one, label in zip(concept.each, labels, strict=True)]
    cases = each[0] if len(each) == 1 else combine_cases(each, concept.names, labels)
    if prompts:
        cases = _with_prompts(cases, prompts, count)
    if retained:
        cases = _with_retained(cases, label_prompts(retained, judge), repeats)
    return cases


def _with_prompts(cases: Cases, prompts: Sequence[str | UserPrompt], count: int) -> Cases:
    """Return the cases with a user's prompts instead of those made from the concept."""
    rows = [UserPrompt(row) if isinstance(row, str) else row for row in prompts]
    seeds = [row.seed for row in rows] + [None] * (count - len(rows))  # a repeated prompt has other noise
    plain = repeat_prompts([row.prompt for row in rows], count)
    return replace(cases, plain=plain, seeds=seeds, foreign=[], keywords=[], concepts=("",))


def _with_retained(cases: Cases, retained: Sequence[LabelledPrompt], repeats: int) -> Cases:
    """Return the cases with a user's retained prompts."""
    counts = [repeats if row.seed is None else min(repeats, 1) for row in retained]
    rows = [row for row, repeat in zip(retained, counts, strict=True) for _ in range(repeat)]
    return replace(cases, retained=rows, neighbours=[])


def _cases_of_one(concept: ConceptConfig, label: str, judge: Judge, count: int, repeats: int) -> Cases:
    """Return the cases of one concept, for which the judge has this label."""
    if isinstance(judge, ConvJudge):
        make = make_object_cases if label in judge.objects else make_style_cases
        return make(label, judge, count, repeats)
    co_occurring = [row for row in make_co_occurring_prompts(concept, judge) for _ in range(repeats)]
    plain = repeat_prompts(make_plain_prompts(concept), count)
    return Cases(plain=plain, foreign=[], keywords=[], retained=[], neighbours=[], co_occurring=co_occurring)


def combine_cases(each: Sequence[Cases], names: Sequence[str], labels: Sequence[str]) -> Cases:
    """Return the cases of several concepts: the same number, with the concepts in turn.

    Args:
        each: the cases of each concept.
        names: the concepts' names.
        labels: the judge's labels of the concepts; prompts with one of them are not retained.
    """
    retained = [row for row in each[0].retained if {row.object, row.style}.isdisjoint(labels)]
    near = {row.object for cases in each for row in cases.neighbours}
    co_occurring: list[LabelledPrompt] = []
    for cases in each:
        known = {*labels, *(row.object for row in co_occurring)}
        co_occurring += [row for row in cases.co_occurring if row.object not in known]
    return Cases(
        plain=_interleave([cases.plain for cases in each]),
        foreign=_interleave([cases.foreign for cases in each]),
        keywords=_interleave([cases.keywords for cases in each]),
        retained=retained,
        neighbours=[row for row in retained if row.object in near],
        co_occurring=co_occurring,
        concepts=tuple(names),
        kind=each[0].kind,
    )


def _interleave(lists: Sequence[list[str]]) -> list[str]:
    """Return items of the lists in turn, as many as the shortest list has; empty lists do not count."""
    filled = [items for items in lists if items]
    return list(islice(chain.from_iterable(zip(*filled, strict=False)), min(map(len, filled), default=0)))
