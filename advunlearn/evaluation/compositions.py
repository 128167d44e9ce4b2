"""Compositional prompts: pairs of retained objects, objects on backgrounds, and the concept among other things.

The accuracy of plain retained prompts does not show whether these survive. The kinds follow EraseBench's binomials
(arXiv 2501.09833) and the in-prompt retention of Six-CD (arXiv 2406.14855).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..config.concept import ConceptConfig, article, bare_name
from ..judges.base import Judge
from ..miniature.captions import caption
from ..prompts.retain import remove_phrases, shuffle
from .cases import Cases, LabelledPrompt

# Kind of prompt -> the name of its accuracy.
COMPOSITIONS = {"pairs": "pair_accuracy", "backgrounds": "background_accuracy", "in_prompt": "in_prompt_accuracy"}
IMAGES_PER_REPEAT = 8  # of each kind
BACKGROUND_COLOURS = ("red", "green", "blue", "yellow")


def find_objects(concept: ConceptConfig, judge: Judge, labels: Sequence[str] = ()) -> dict[str, str]:
    """Return the objects that the prompts name, shuffled, with the judge's labels.

    Args:
        concept: the erased concept, or several; objects that contain its name are left out.
        judge: knows the objects.
        labels: the labels of a user's retained prompts; if two or more are objects, the prompts name only these.
    """
    by_name = {label.split(",")[0]: label for label in judge.objects}
    names = remove_phrases(by_name, map(bare_name, concept.names))
    chosen = [name for name in names if by_name[name] in labels]
    return {name: by_name[name] for name in shuffle(chosen if len(chosen) > 1 else names)}


def make_compositions(
    concept: ConceptConfig, objects: Mapping[str, str], backgrounds: Sequence[str], count: int
) -> dict[str, list[LabelledPrompt]]:
    """Return `count` prompts of each kind.

    Args:
        concept: the erased concept, or several, which the in-prompt prompts name in turn.
        objects: two or more, see `find_objects`.
        backgrounds: the colours that the judge recognizes; of an image on another background only the object counts.
        count: number of prompts of each kind.
    """
    names = list(objects)
    kinds: dict[str, list[LabelledPrompt]] = {kind: [] for kind in COMPOSITIONS}
    for i in range(count):
        name, other = names[i % len(names)], names[(i + len(names) // 2) % len(names)]
        label, colour = objects[name], BACKGROUND_COLOURS[i % len(BACKGROUND_COLOURS)]
        background = colour if colour in backgrounds else ""
        pair = f"{caption(name)} and {caption(other)}"
        kinds["pairs"].append(LabelledPrompt(pair, label, either=objects[other]))
        kinds["backgrounds"].append(LabelledPrompt(caption(name, background=colour), label, background=background))
        erased, colour = concept.each[i // 2 % len(concept.each)], BACKGROUND_COLOURS[i // 2 % len(BACKGROUND_COLOURS)]
        background = colour if colour in backgrounds and i % 2 else ""
        prompt = _name_beside(erased, name, background)
        kinds["in_prompt"].append(LabelledPrompt(prompt, "" if background else label, background=background))
    return kinds


def _name_beside(concept: ConceptConfig, name: str, background: str) -> str:
    """Return a prompt that names a concept and something else: a background, or without one an object."""
    if concept.kind == "style":
        return caption(name, style=concept.name, background=background)
    if background:
        return f"{concept.prompts[0]}, on {article(background)} background"
    return f"{caption(name)} and {concept.prompts[0]}"


def add_compositions(cases: Cases, concept: ConceptConfig, judge: Judge, repeats: int) -> Cases:
    """Return the cases with compositional prompts, `IMAGES_PER_REPEAT` of each kind for each repeat.

    There are none if the judge does not know two objects besides the concept.
    """
    objects = find_objects(concept, judge, [row.object for row in cases.retained])
    if len(objects) < 2 or not repeats:
        return cases
    kinds = make_compositions(concept, objects, judge.backgrounds, IMAGES_PER_REPEAT * repeats)
    return replace(cases, compositions=kinds)


def explain_not_measured(repeats: int, utility: Mapping[str, object]) -> dict[str, str]:
    """Return why metrics of the retained images are missing, by their names."""
    reasons = {
        "retained_accuracy": "there are no retained prompts with a label",
        "neighbour_accuracy": "the retained prompts have no neighbours of the concept",
        "feature_distance": "there are fewer than two retained images, or the judge has no features",
        **dict.fromkeys(COMPOSITIONS.values(), "the judge does not know two objects besides the concept"),
    }
    if not repeats:
        reasons = dict.fromkeys(reasons, "repeats is 0")
    return {name: reason for name, reason in reasons.items() if name not in utility}
