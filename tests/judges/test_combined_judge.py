"""Several judges as one."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from tiny_models import colour_classifier, colour_clip, patches

from advunlearn.cli.main import main
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import CombinedConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.judges import load as judges
from advunlearn.judges.base import JudgeOutput
from advunlearn.judges.classifier import ClassifierJudge
from advunlearn.judges.combined import CombinedJudge
from advunlearn.judges.convnet import ConvJudge
from advunlearn.judges.zero_shot import ZeroShotJudge


class Says:
    """A judge that sees what it was told to, and knows no other label."""

    def __init__(self, label: str, *pictures: str) -> None:
        self.name, self.pictures = label, pictures

    def concept_label(self, concept: ConceptConfig) -> str:
        return self.name

    def label(self, name: str) -> str:
        if name not in self.pictures:
            raise AdvUnlearnError(f"{self.name}'s judge has no label {name!r}")
        return name

    def look(self, images: torch.Tensor, concept: str) -> JudgeOutput:
        return JudgeOutput([frozenset({label}) for label in self.pictures])

    def settings(self) -> dict[str, Any]:
        return {"judge": self.name}


def test_any_or_all_by_hand() -> None:
    a, b = Says("nudity", "nudity", "nudity", "dog"), Says("nude", "nude", "cat", "cat")
    for rule, hits in (("any", [True, True, False]), ("all", [True, False, False])):
        judge = CombinedJudge([a, b], CombinedConfig(shown_by=rule))  # type: ignore[arg-type]
        name = judge.concept_label(ConceptConfig(concept="naked"))
        assert [judge.label(kept) for kept in ("dog", "cat")] == ["dog", "cat"]  # the one that knows it decides
        seen = judge.look(torch.zeros(3, 3, 8, 8), name)
        assert seen.shows(name).tolist() == hits
        assert seen.shows("dog").tolist() == [False, False, True] and seen.shows("cat").tolist() == [False, True, True]
    assert judge.settings() == {"judge": "nudity + nude", "shown_by": "all", "judges": [a.settings(), b.settings()]}
    with pytest.raises(AdvUnlearnError, match="nudity's judge has no label 'cow'; nude's judge has no label 'cow'"):
        judge.label("cow")
    with pytest.raises(AdvUnlearnError, match="1 judge cannot be combined"):
        CombinedJudge([a])


def test_by_their_names(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier, clip = colour_classifier(tmp_path / "a+b"), colour_clip(tmp_path / "clip")
    assert isinstance(judges.make_judge(str(classifier)), ClassifierJudge)  # a folder may have a + in its name
    plain = classifier.rename(tmp_path / "vit")
    judge = judges.make_judge(f"{plain}+clip:{clip}")
    assert isinstance(judge, CombinedJudge)
    assert [type(one) for one in judge.judges] == [ClassifierJudge, ZeroShotJudge]
    seen = judge.look(patches(["red", "blue"]), judge.concept_label(ConceptConfig(concept="red")))
    assert seen.shows("red").tolist()[0] and seen.features is not None
    with pytest.raises(AdvUnlearnError, match="has a . with nothing beside it; give judges as A.B"):
        judges.make_judge("miniature+")
    assert main(["evaluate", "--judge", "miniature", "--shown-by", "all", "--out", str(tmp_path / "out")]) == 2
    assert "--shown-by is no setting of the judge 'miniature'" in capsys.readouterr().err
    assert main(["evaluate", "--judge", "miniature+nowhere", "--out", str(tmp_path / "out")]) == 2
    assert "judge 'nowhere': no such folder" in capsys.readouterr().err


def test_a_judge_of_other_weights_is_another(judge: ConvJudge, tmp_path: pathlib.Path) -> None:
    """In a folder of the same name, with the same settings: an evaluation does not go on with it."""
    folders = [tmp_path / name / "judge" for name in ("one", "two")]
    judge.save_pretrained(folders[0])
    judge.save_pretrained(folders[1])
    first, second = (judges.convnet(folder) for folder in folders)
    assert first.settings() == second.settings()
    second.object_head.bias.data[0] += 1  # type: ignore[attr-defined]
    assert first.settings() != second.settings()
    vit = ClassifierJudge(colour_classifier(tmp_path / "vit"))
    before = vit.settings()
    assert set(before) == {"judge", "folder", "weights", "top_k"} and len(before["weights"]) == 12
