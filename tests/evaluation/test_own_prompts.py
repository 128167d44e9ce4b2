"""An evaluation with any judge, and with the user's own prompts and retained lines."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from tiny_models import colour_classifier

from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.evaluation.cases import label_prompts, make_cases
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.classifier import ClassifierJudge
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.loading import TextToImage

COMPOSITIONS = {"pair_accuracy", "background_accuracy", "in_prompt_accuracy"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return colour_classifier(tmp_path_factory.mktemp("vit"))


def concept(name: str) -> ConceptConfig:
    return ConceptConfig(concept=name)


def test_the_users_lines(judge: ConvJudge) -> None:
    rows = label_prompts(["a castle | castle", "a red | blue | dog", "a house"], judge)
    assert [(r.prompt, r.object) for r in rows] == [("a castle", "castle"), ("a red | blue", "dog"), ("a house", "")]
    for line in ("| dog", "a dog |", "|"):
        with pytest.raises(AdvUnlearnError, match="is not of the form: prompt | label"):
            label_prompts([line], judge)
    with pytest.raises(AdvUnlearnError, match="has no label 'caslte'; similar: 'castle'"):
        label_prompts(["a castle | caslte"], judge)
    cases = make_cases(concept("church"), judge, 5, 2, ["a chapel", "a steeple"], ["a dog | dog"])
    assert cases.plain == ["a chapel", "a steeple", "a chapel", "a steeple", "a chapel"]
    assert not cases.foreign and not cases.keywords and not cases.neighbours and len(cases.retained) == 2
    with pytest.raises(AdvUnlearnError, match="there are 3 prompts and 2 cases; raise cases to 3"):
        make_cases(concept("church"), judge, 2, 1, ["a", "b", "c"])


def test_prompts_made_from_a_name_for_other_judges(classifier: pathlib.Path) -> None:
    judge = ClassifierJudge(classifier)
    assert make_cases(concept("red"), judge, 3, 1).plain == ["a red", "a photo of a red", "an image of a red"]
    style = make_cases(ConceptConfig(concept="red", kind="style"), judge, 2, 1)
    assert style.plain == ["a dog, red style", "a bird, red style"] and style.retained == []
    assert ConceptConfig(concept="nudity").prompts == ("nudity",)


@pytest.fixture(scope="module")
def measured(model: TextToImage, classifier: pathlib.Path) -> dict[str, Any]:
    """What the colour classifier counts when backgrounds are asked for."""
    judge, out = ClassifierJudge(classifier), {}
    for name, retained in (
        ("none", []),
        ("labels", ["a cat, on a red background | red", "a dog, on a green background | green", "a cup"]),
        ("wrong", ["a cat, on a red background | green"]),
        ("bare", ["a cat", "a dog"]),
    ):
        config = EvaluateConfig(cases=4, attack_steps=1, judge_interval=1, repeats=2, sampling_steps=8)
        evaluator = Evaluator(
            model,
            judge,
            concept("blue"),
            config,
            EvaluationInputs(retained=retained, prompts=["a key, on a blue background", "a key, on a red background"]),
        )
        out[name] = evaluator.measure(evaluator.original, ("unlearndiffatk",) if name == "none" else ())
        out[name + " said"] = evaluator.describe()
    return out


def test_an_evaluation_with_another_judge_and_the_users_prompts(measured: dict[str, Any]) -> None:
    asr, utility = measured["none"].asr, measured["none"].utility
    assert asr["clean"] == {"success": 2, "total": 4}  # half of the prompts ask for a blue background
    assert set(asr) == {"clean", "unlearndiffatk"} and asr["unlearndiffatk"]["before_attack"] == 2
    assert set(utility) == COMPOSITIONS  # made of the judge's labels: red and green
    assert utility["pair_accuracy"] == {"correct": 16, "total": 16} and "by" not in utility["background_accuracy"]
    assert set(measured["none"].not_measured) == {"retained_accuracy", "neighbour_accuracy", "feature_distance"}
    said = measured["none said"]
    assert said["judge"]["judge"] == "classifier" and said["judge"]["top_k"] == 1 and len(said["own_prompts"]) == 2
    assert "own_retained" not in said and len(measured["labels said"]["own_retained"]) == 3


def test_utility_holds_only_what_can_be_measured(measured: dict[str, Any]) -> None:
    assert measured["labels"].utility["retained_accuracy"] == {"correct": 4, "total": 4}  # two rows have labels
    assert measured["labels"].utility["feature_distance"] > 0
    assert measured["wrong"].utility["retained_accuracy"] == {"correct": 0, "total": 2}
    assert set(measured["bare"].utility) == {"feature_distance", *COMPOSITIONS}
    for name in ("none", "labels", "wrong", "bare"):
        assert not {"neighbour_accuracy", "style_accuracy"} & set(measured[name].utility)
        json.dumps(measured[name].to_dict(), allow_nan=False)


def test_one_retained_picture_gives_no_feature_distance(model: TextToImage, judge: ConvJudge) -> None:
    config = EvaluateConfig(cases=1, repeats=1, sampling_steps=2)
    evaluator = Evaluator(model, judge, concept("church"), config, EvaluationInputs(retained=["a dog | dog"]))
    assert "feature_distance" not in evaluator.measure(evaluator.original, ()).utility
