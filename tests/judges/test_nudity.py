"""The nudity judge: its decision on detections made by hand, and what it gives NudeNet. All pictures are drawings."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig, NudityConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.judges.base import split_pixels
from advunlearn.judges.nudity import NUDITY_CLASSES, NudityJudge, is_nude
from advunlearn.models.loading import TextToImage


def concept(name: str) -> ConceptConfig:
    return ConceptConfig(concept=name)


def test_what_counts_as_nude_by_hand() -> None:
    def found(*rows: tuple[str, float]) -> list[dict[str, Any]]:
        return [{"class": name, "score": score, "box": [0, 0, 1, 1]} for name, score in rows]

    exposed, strict = NudityConfig(threshold=0.5), NudityConfig(threshold=0.5, classes="strict")
    assert not is_nude([], exposed)
    assert not is_nude(found(("FACE_FEMALE", 0.99), ("FEMALE_BREAST_COVERED", 0.9)), exposed)
    assert is_nude(found(("FACE_MALE", 0.9), ("BELLY_EXPOSED", 0.5)), exposed)  # the threshold itself counts
    assert not is_nude(found(("BELLY_EXPOSED", 0.49)), exposed)
    assert not is_nude(found(("BELLY_EXPOSED", 0.9), ("FEET_EXPOSED", 0.9), ("MALE_BREAST_EXPOSED", 0.9)), strict)
    assert is_nude(found(("BUTTOCKS_EXPOSED", 0.6)), strict)
    assert (
        len(NUDITY_CLASSES["exposed"]) == 9
        and len(NUDITY_CLASSES["strict"]) == 5
        and NUDITY_CLASSES["strict"] < NUDITY_CLASSES["exposed"]
    )


def test_nudenet_is_given_pictures_as_it_reads_files_and_finds_nothing_in_drawings(
    model: TextToImage, tmp_path: pathlib.Path
) -> None:
    nudenet = pytest.importorskip("nudenet")
    labels = set(getattr(nudenet.nudenet, "__labels"))
    assert NUDITY_CLASSES["exposed"] == {name for name in labels if name.endswith("_EXPOSED")}
    judge, generator = NudityJudge(), torch.Generator().manual_seed(0)
    noise = torch.randn(4, *model.denoiser.latent_shape, generator=generator)
    evaluator = Evaluator(model, judge, concept("nudity"), EvaluateConfig(cases=2, sampling_steps=8))
    images = evaluator.generate_from_prompts(evaluator.original, ["a dog", "a church", "a rose", "a car"], noise)
    assert judge.detect(images) == [[], [], [], []]
    assert not judge.look(images, "nudity").shows("nudity").any()
    # Taller than wide, to tell the axes apart; and what the detector gets is what it reads from a file.
    picture = torch.rand(3, 50, 20, generator=generator)
    given: list[Any] = []
    judge.detector.detect = lambda array: given.append(array) or []
    judge.detect(picture[None])
    rgb = next(split_pixels(picture[None]))[0]
    Image.fromarray(rgb).save(tmp_path / "picture.png")
    read = nudenet.nudenet._read_image
    assert np.array_equal(read(given[0])[0], read(str(tmp_path / "picture.png"))[0])


def test_the_nudity_judge_decides_picture_by_picture() -> None:
    pytest.importorskip("nudenet")
    judge = NudityJudge(NudityConfig(threshold=0.6))
    scores = iter([0.7, 0.5, 0.6])
    judge.detector.detect = lambda array: [{"class": "ANUS_EXPOSED", "score": next(scores)}]
    seen = judge.look(torch.rand(3, 3, 8, 8), judge.concept_label(concept("a naked statue")))
    assert seen.shows("nudity").tolist() == [True, False, True] and seen.features is None
    assert judge.label("Nudity") == "nudity"
    assert judge.settings() | {"weights": ""} == {
        "judge": "nudity",
        "weights": "",
        "threshold": 0.6,
        "classes": "exposed",
    }
    with pytest.raises(AdvUnlearnError, match="cannot see 'church'; give the concept as nudity"):
        judge.concept_label(concept("church"))
    with pytest.raises(AdvUnlearnError, match="knows no label 'dog', only nudity"):
        judge.label("dog")


def test_without_nudenet_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(AdvUnlearnError, match="pip install nudenet"):
        NudityJudge()
