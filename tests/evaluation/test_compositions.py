"""Pairs, backgrounds and in-prompt retention: prompts, counts, and why they are missing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.cases import Cases, LabelledPrompt
from advunlearn.evaluation.compositions import (
    COMPOSITIONS,
    IMAGES_PER_REPEAT,
    add_compositions,
    explain_not_measured,
    find_objects,
    make_compositions,
)
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.evaluation.metrics import count_decisions, list_decisions
from advunlearn.judges.base import JudgeOutput
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.loading import TextToImage

DOG, STYLE = ConceptConfig(concept="dog"), ConceptConfig(concept="ink", kind="style")
NONE = Cases(plain=[], foreign=[], keywords=[], retained=[], neighbours=[])
NAMES = {"apple": "apple", "bus": "bus, coach", "cat": "cat", "drum": "drum"}


@dataclass
class Names:
    """What is asked of a judge here: the names of what it knows."""

    objects: Sequence[str]
    backgrounds: Sequence[str] = ()


def test_objects_are_what_the_judge_knows_without_the_concept() -> None:
    judge = Names(["hot dog", "bus, coach", "dog", "cat", "apple"])
    objects = find_objects(DOG, judge)  # type: ignore[arg-type]
    assert objects == {"bus": "bus, coach", "cat": "cat", "apple": "apple"}
    chosen = find_objects(DOG, judge, ["cat", "bus, coach", "dog", ""])  # type: ignore[arg-type]
    assert chosen == {"bus": "bus, coach", "cat": "cat"}
    assert find_objects(DOG, judge, ["cat"]) == objects  # type: ignore[arg-type]  # one alone makes no pair


def test_prompts_of_each_kind() -> None:
    kinds = make_compositions(DOG, NAMES, ["white", "red", "green"], 4)
    assert [(row.prompt, row.object, row.either) for row in kinds["pairs"]] == [
        ("an apple and a cat", "apple", "cat"),
        ("a bus and a drum", "bus, coach", "drum"),
        ("a cat and an apple", "cat", "apple"),
        ("a drum and a bus", "drum", "bus, coach"),
    ]
    assert [(row.prompt, row.object, row.background) for row in kinds["backgrounds"]] == [
        ("an apple, on a red background", "apple", "red"),
        ("a bus, on a green background", "bus, coach", "green"),
        ("a cat, on a blue background", "cat", ""),  # a colour that this judge does not recognize
        ("a drum, on a yellow background", "drum", ""),
    ]
    assert [(row.prompt, row.object, row.background) for row in kinds["in_prompt"]] == [
        ("an apple and a dog", "apple", ""),
        ("a dog, on a red background", "", "red"),
        ("a cat and a dog", "cat", ""),
        ("a dog, on a green background", "", "green"),
    ]


def test_in_prompt_prompts_of_a_style_of_several_concepts_and_of_a_judge_without_backgrounds() -> None:
    def prompts(concept: ConceptConfig, backgrounds: Sequence[str]) -> list[str]:
        return [row.prompt for row in make_compositions(concept, NAMES, backgrounds, 4)["in_prompt"]]

    assert prompts(STYLE, ["red", "green"]) == [
        "an apple, ink style",
        "a bus, ink style, on a red background",
        "a cat, ink style",
        "a drum, ink style, on a green background",
    ]
    several = ConceptConfig(concept="dog, fish")
    assert prompts(several, ["red", "green"]) == [
        "an apple and a dog",
        "a dog, on a red background",
        "a cat and a fish",
        "a fish, on a green background",
    ]
    assert prompts(DOG, ()) == ["an apple and a dog", "a bus and a dog", "a cat and a dog", "a drum and a dog"]


def test_either_object_of_a_pair_counts_and_a_background_only_with_its_object() -> None:
    pair = LabelledPrompt("a cat and a dog", "cat", either="dog")
    seen = JudgeOutput([frozenset({"dog"}), frozenset({"cat"}), frozenset({"bus"}), frozenset()])
    assert count_decisions(list_decisions([pair] * 4, seen)) == {"correct": 2, "total": 4}
    red = LabelledPrompt("a cat, on a red background", "cat", background="red")
    labels = [{"cat", "red background"}, {"cat", "blue background"}, {"dog", "red background"}, {"cat"}]
    decisions = list_decisions([red] * 4, JudgeOutput([frozenset(each) for each in labels]))
    assert decisions[1] == {
        "object": "cat",
        "background": "red",
        "seen": ["blue background", "cat"],
        "object_right": True,
        "background_right": False,
    }
    by = {"object": {"correct": 3, "total": 4}, "background": {"correct": 2, "total": 4}}
    assert count_decisions(decisions) == {"correct": 1, "total": 4, "by": by}


def test_what_is_not_measured_has_a_reason() -> None:
    few = add_compositions(NONE, DOG, Names(["dog", "cat"]), 2)  # type: ignore[arg-type]
    assert not few.compositions
    enough = add_compositions(NONE, DOG, Names(["dog", "cat", "bus"]), 2)  # type: ignore[arg-type]
    assert {kind: len(rows) for kind, rows in enough.compositions.items()} == dict.fromkeys(
        COMPOSITIONS, 2 * IMAGES_PER_REPEAT
    )
    assert not add_compositions(NONE, DOG, Names(["dog", "cat", "bus"]), 0).compositions  # type: ignore[arg-type]
    missing = explain_not_measured(2, {"retained_accuracy": {"correct": 1, "total": 1}, "feature_distance": 1.0})
    assert missing.keys() == {"neighbour_accuracy", *COMPOSITIONS.values()}
    assert "two objects" in missing["pair_accuracy"]
    assert set(explain_not_measured(0, {}).values()) == {"repeats is 0"}


def test_a_measurement_of_an_earlier_version_is_completed(
    model: TextToImage, judge: ConvJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(cases=2, sampling_steps=2, repeats=1)
    inputs = EvaluationInputs(retained=["a cat | cat", "a bus | bus", "a fish | fish"])
    evaluator = Evaluator(model, judge, DOG, config, inputs)
    complete = evaluator.measure(evaluator.original, attacks=())
    assert {complete.utility[name]["total"] for name in COMPOSITIONS.values()} == {IMAGES_PER_REPEAT}
    assert {row["object"] for row in complete.cases["pairs"]} == {"cat", "bus", "fish"}  # the user's own
    earlier = copy.deepcopy(complete)
    earlier.not_measured = {}
    for kind, name in COMPOSITIONS.items():
        del earlier.utility[name], earlier.cases[kind]
    monkeypatch.setattr(evaluator, "_measure_retained", lambda subject, out: pytest.fail("is measured already"))
    completed = evaluator.measure(evaluator.original, attacks=(), resumed=earlier)
    assert completed.to_dict() == complete.to_dict()
    monkeypatch.setattr(evaluator, "measure_utility", lambda subject, out: pytest.fail("is measured already"))
    assert evaluator.measure(evaluator.original, attacks=(), resumed=completed).to_dict() == complete.to_dict()
