"""Judges by their names: which settings they accept on the command line, and how they are told apart."""

from __future__ import annotations

import pathlib

import pytest
from tiny_models import colour_classifier

from advunlearn.cli.main import main
from advunlearn.judges.classifier import ClassifierJudge
from advunlearn.judges.convnet import ConvJudge
from advunlearn.judges.load import load_conv_judge


def test_a_setting_of_another_judge_is_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["evaluate", "--judge", "miniature", "--top-k", "2", "--out", out]) == 2
    assert "--top-k is no setting of the judge 'miniature'" in capsys.readouterr().err
    assert main(["evaluate", "--judge", "nowhere", "--out", out]) == 2
    assert "judge 'nowhere': no such folder" in capsys.readouterr().err


def test_a_judge_of_other_weights_is_another(judge: ConvJudge, tmp_path: pathlib.Path) -> None:
    """In a folder of the same name, with the same settings: an evaluation is not resumed with it."""
    folders = [tmp_path / name / "judge" for name in ("one", "two")]
    judge.save_pretrained(folders[0])
    judge.save_pretrained(folders[1])
    first, second = (load_conv_judge(folder) for folder in folders)
    assert first.settings() == second.settings()
    second.object_head.bias.data[0] += 1  # type: ignore[attr-defined]
    assert first.settings() != second.settings()
    vit = ClassifierJudge(colour_classifier(tmp_path / "vit"))
    before = vit.settings()
    assert set(before) == {"judge", "folder", "weights", "top_k"} and len(before["weights"]) == 12
