"""An evaluation that was interrupted, or gets more attacks, measures only what is missing and ends with the same."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from advunlearn.cli.main import main
from advunlearn.errors import AdvUnlearnError
from advunlearn.evaluation import evaluator as evaluate
from advunlearn.evaluation.cases import Cases, make_cases
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.evaluation.metrics import Measurement
from advunlearn.evaluation.resume import EvaluationCache
from advunlearn.files import MEASURED

FLAGS = [
    "--cases",
    "3",
    "--attack-steps",
    "2",
    "--judge-interval",
    "1",
    "--attack-tokens",
    "2",
    "--sampling-steps",
    "2",
    "--repeats",
    "1",
    "--device",
    "cpu",
    "--json",
]


def evaluated(out: pathlib.Path, *more: str) -> dict[str, Any]:
    """Evaluate; return the report without what depends on the clock and on the command."""
    assert main(["evaluate", *FLAGS, "--out", str(out), *more]) == 0
    report = json.loads((out / "report.json").read_text())
    for row in report["models"].values():
        del row["attack_seconds"]
    return {k: v for k, v in report.items() if k != "command"}


@pytest.fixture(autouse=True)
def neighbours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let five pictures be retained, in place of 63."""

    def few(*args: Any) -> Cases:
        cases = make_cases(*args)
        return replace(cases, retained=cases.neighbours)

    monkeypatch.setattr(evaluate, "make_cases", few)


@pytest.fixture
def attacked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the attacks that are run from now on."""
    names: list[str] = []
    attack = Evaluator.measure_attack

    def noted(self: Evaluator, subject: Any, name: str, *rest: Any) -> None:
        names.append(name)
        attack(self, subject, name, *rest)

    monkeypatch.setattr(Evaluator, "measure_attack", noted)
    return names


def test_what_is_there_is_kept_and_the_rest_is_measured(
    tmp_path: pathlib.Path, attacked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--attacks", "random_prefix", "pez"]
    whole = evaluated(tmp_path / "whole", *both)
    assert attacked == ["random_prefix", "pez"]

    kept = Evaluator.measure_attack

    def interrupted(self: Evaluator, subject: Any, name: str, *rest: Any) -> None:
        if name == "pez":
            raise KeyboardInterrupt
        kept(self, subject, name, *rest)

    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "measure_attack", interrupted)
        assert main(["evaluate", *FLAGS, "--out", str(out), *both]) == 130
    assert "finished measurements are saved in" in capsys.readouterr().err
    assert not (out / "report.json").exists() and len(list(out.glob(f"original-*{MEASURED}"))) == 1
    attacked.clear()
    assert evaluated(out, *both, "--resume") == whole
    assert attacked == ["pez"]

    attacked.clear()
    more = evaluated(out, *both, "seed_search", "--resume")
    assert attacked == ["seed_search"] and set(more["models"]["original"]["attacks"]) == {*both[1:], "seed_search"}
    assert evaluated(out, *both, "--resume") == more  # nothing that was measured is lost
    attacked.clear()
    assert evaluated(out, *both) == whole  # without --resume all of it is measured anew
    assert attacked == ["random_prefix", "pez"]


def test_other_settings_and_broken_files_are_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*more: str) -> str:
        capsys.readouterr()
        assert main(["evaluate", *FLAGS, "--out", str(tmp_path), "--attacks", "pez", "--resume", *more]) == 2
        return capsys.readouterr().err

    evaluated(tmp_path, "--attacks", "pez")
    assert "other settings: config.guidance_scale was 3.0 and is 4.0" in refused("--guidance-scale", "4")
    assert "other settings: attacks.pez" in refused("--pez-lr", "0.5")
    evaluated(tmp_path / "more", "--attacks", "pez")
    added = ["--attacks", "pez", "mma", "--mma-steps", "1", "--mma-candidates", "4", "--resume"]  # no setting of pez
    assert set(evaluated(tmp_path / "more", *added)["models"]["original"]["attacks"]) == {"pez", "mma"}
    assert "other settings: concept.concept was 'church' and is 'castle'" in refused("--concept", "castle")
    (file,) = tmp_path.glob(f"original-*{MEASURED}")
    file.write_bytes(b"half a file")
    assert "cannot be read" in refused()


def damage_a_value(path: pathlib.Path) -> None:
    """Change one number of a saved measurement, as a flipped bit would."""
    content = torch.load(path, weights_only=True)
    content["measurement"]["images"]["clean"][0, 0, 0, 0] += 2**-20
    torch.save(content, path)


def test_the_file_of_an_earlier_version_is_read_by_the_current_names(tmp_path: pathlib.Path) -> None:
    subject = {"encoder": "a", "denoiser": "b"}
    rows, image = [{"case": 0, "success": True}], torch.zeros(1, 3, 2, 2)
    old = {
        "about": {"subject": subject, "attacks": {"routes": {"steps": 3}}, "evaluation": {"own_routes": ["kirche"]}},
        "measurement": {
            "asr": {"routes": {"success": 1, "total": 1}},
            "cases": {"other_routes": rows, "routes": rows},
            "attacks": {"routes": {"steps": 3}},
            "pictures": {"clean": image, "routes": image},
        },
    }
    now = {
        "subject": subject,
        "attacks": {"synonym_search": {"steps": 3}},
        "evaluation": {"own_synonyms": ["kirche"]},
    }
    cache = EvaluationCache(tmp_path, "mine", now)
    torch.save(old, cache.path)
    measured = cache.load()
    assert set(measured.asr) == {"synonyms"} and set(measured.attacks) == {"synonym_search"}
    assert set(measured.cases) == {"synonyms", "synonym_search"} and set(measured.images) == {"clean", "synonym_search"}
    cache.save(measured)
    damage_a_value(cache.path)
    with pytest.raises(AdvUnlearnError, match="is damaged: its SHA-256 is not the one that was saved; delete it, or"):
        cache.load()
    cache.save(measured)
    assert vars(cache.load()).keys() == vars(Measurement()).keys() and cache.load().to_dict() == measured.to_dict()
