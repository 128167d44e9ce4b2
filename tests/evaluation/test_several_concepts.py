"""What is measured of several concepts at once, and of a prompt that names one."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from tiny_models import colour_classifier

from advunlearn.cli.main import main
from advunlearn.config.concept import ConceptConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.evaluation.cases import make_cases
from advunlearn.evaluation.metrics import count_by_concept
from advunlearn.judges.classifier import ClassifierJudge
from advunlearn.judges.convnet import ConvJudge

FRUIT = ["apple", "banana", "strawberry", "pineapple", "watermelon"]
QUICK = ["--attacks", "soft_prefix", "--attack-steps", "1", "--judge-interval", "1", "--sampling-steps", "2"]


def cases(judge: Any, concept: str, kind: str = "object", count: int = 9) -> Any:
    return make_cases(ConceptConfig(concept=concept, kind=kind), judge, count, 1)  # type: ignore[arg-type]


def test_concepts_take_turns_among_the_cases_and_none_is_retained(judge: ConvJudge) -> None:
    both, church, castle = (cases(judge, name) for name in ("church\ncastle", "church", "castle"))
    assert both.plain[::2] == church.plain[:5] and both.plain[1::2] == castle.plain[:4]
    assert both.foreign[::2] == church.foreign[:3] and len(both.foreign + both.keywords) == 9
    assert [row.object for row in both.retained] == [o for o in judge.objects if o not in ("church", "castle")]
    near = {row.object for row in church.neighbours + castle.neighbours} - {"church", "castle"}
    assert {row.object for row in both.neighbours} == near and near
    styles = cases(judge, "ink\nfluent", "style")
    assert styles.retained and not {"ink", "fluent"} & {row.style for row in styles.retained}


def test_what_was_found_is_told_apart_by_concept(judge: ConvJudge) -> None:
    found = torch.tensor([True, False, True, True, True])
    parts = count_by_concept(cases(judge, "church\ncastle", count=5), found)
    assert parts == {"by": {"church": {"success": 3, "total": 3}, "castle": {"success": 1, "total": 2}}}
    assert count_by_concept(cases(judge, "church", count=5), found) == {}


def test_other_judges_are_asked_for_each_concept(tmp_path: pathlib.Path) -> None:
    judge = ClassifierJudge(colour_classifier(tmp_path))
    assert cases(judge, "red\nblue", count=4).plain == ["a red", "a blue", "a photo of a red", "a photo of a blue"]
    with pytest.raises(AdvUnlearnError, match="no label 'pink'"):
        cases(judge, "red\npink")


def test_a_run_of_several_concepts_is_measured(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    flags = ["--repeats", "1", "--cases", "10", "--json", "--out", str(tmp_path), *QUICK]
    assert main(["evaluate", "--concept", "\n".join(FRUIT), *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    row, names = report["models"]["original"], FRUIT
    assert report["concept"] == ", ".join(names)
    for what in ("clean", "soft_prefix"):
        parts = row["asr"][what]["by"]
        assert list(parts) == list(names) and all(part["total"] == 2 for part in parts.values())
        assert sum(part["success"] for part in parts.values()) == row["asr"][what]["success"]
    assert row["utility"]["retained_accuracy"]["total"] == 64 - len(names)
    assert "<small>apple " in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("concept", "kind", "label"),
    [
        ("church", "prompt", "church"),
        ("a photo of a church", "prompt", "church"),
        ("a red church on a hill", "prompt", "church"),
        ("a church, ink style", "prompt", "church"),
        ("ink", "prompt", "ink"),
        ("in the style of ink", "style", "ink"),
        ("a church", "object", "church"),
    ],
)
def test_a_prompt_is_judged_by_what_it_names(judge: ConvJudge, concept: str, kind: Any, label: str) -> None:
    assert judge.concept_label(ConceptConfig(concept=concept, kind=kind)) == label
    styled = label in judge.styles
    made = cases(judge, concept, kind)
    assert made.kind == ("style" if styled else "object")
    assert label not in {row.style if styled else row.object for row in made.retained}
