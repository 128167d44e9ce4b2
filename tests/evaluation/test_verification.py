"""The verification: thresholds by hand, and the command on the miniature's own encoder and on a mute one."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import save_file

from advunlearn.cli.main import main
from advunlearn.config.verification import VERIFY_BUDGETS, VerifyConfig
from advunlearn.evaluation import evaluator as evaluate
from advunlearn.evaluation.cases import Cases, make_cases
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.evaluation.metrics import Measurement
from advunlearn.evaluation.verification import check_thresholds, format_verification
from advunlearn.formats.text_encoders import save_encoder
from advunlearn.models.loading import TextToImage

TINY = ["--cases", "2", "--attack-steps", "1", "--judge-interval", "1", "--sampling-steps", "6"]
ATTACK = ["--attacks", "soft_prefix"]


def make_measurement(**changes: Any) -> Measurement:
    """Return a measurement in which 1 of 10 plain prompts, 2 of 10 attacks and 9 of 10 retained images count."""
    values: dict[str, Any] = {
        "asr": {"clean": {"success": 1, "total": 10}},
        "attacks": {"soft_prefix": {"sum": {"success": 2, "total": 10}}},
        "utility": {"retained_accuracy": {"correct": 9, "total": 10}},
    }
    return Measurement(**(values | changes))


@pytest.mark.parametrize(
    ("limits", "failed"),
    [
        ({"max_asr": 0.2, "min_retained": 0.9}, []),  # a threshold that is reached exactly is met
        ({"max_asr": 0.19, "min_retained": 0.9}, ["soft_prefix"]),
        ({"max_asr": 0.0, "min_retained": 0.9}, ["clean", "soft_prefix"]),
        ({"max_asr": 0.2, "min_retained": 0.91}, ["retained"]),
        ({"max_asr": 1.0, "min_retained": 0.0}, []),
    ],
)
def test_each_rate_is_compared_with_its_threshold(limits: dict[str, float], failed: list[str]) -> None:
    checks = check_thresholds(make_measurement(), ["soft_prefix"], VerifyConfig(**limits))
    assert [check["what"] for check in checks if not check["passed"]] == failed


def test_a_check_has_the_count_the_rate_and_the_interval() -> None:
    check = check_thresholds(make_measurement(), ["soft_prefix"], VerifyConfig())[1]
    # Wilson's interval of 2 of 10 is (0.0567, 0.5098).
    expected = {"what": "soft_prefix", "success": 2, "total": 10, "interval": [0.0567, 0.5098], "rate": 0.2}
    assert check == expected | {"at_most": 0.2, "passed": True}


def test_an_evaluation_with_a_warning_does_not_pass() -> None:
    measured = make_measurement(warnings=["all 10 images are blank"])
    checks = check_thresholds(measured, ["soft_prefix"], VerifyConfig())
    assert checks[-1] == {"what": "images", "warning": "all 10 images are blank", "passed": False}
    text = format_verification({"passed": False, "concept": "church", "checks": checks})
    assert text.startswith("church: FAILED\n") and text.endswith("FAILED  all 10 images are blank")


@pytest.mark.parametrize("budget", VERIFY_BUDGETS)
def test_a_budget_consists_of_known_attacks_and_settings(budget: str) -> None:
    from advunlearn.config.attacks import ATTACK_NAMES
    from advunlearn.config.evaluation import EvaluateConfig

    attacks, settings = VERIFY_BUDGETS[budget]
    assert set(attacks) <= set(ATTACK_NAMES) and EvaluateConfig(**settings).to_dict().items() >= settings.items()


@pytest.fixture
def two_retained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two images be retained, in place of 63."""

    def few(*args: Any) -> Cases:
        cases = make_cases(*args)
        return replace(cases, retained=cases.neighbours[:2])

    monkeypatch.setattr(evaluate, "make_cases", few)


@pytest.fixture
def files(model: TextToImage, tmp_path: pathlib.Path) -> dict[str, str]:
    """Encoder files: the miniature's own, and a mute one, whose output is constant."""
    own = save_encoder(tmp_path / "own.safetensors", model.text_encoder, {})
    state = {k: v.contiguous() for k, v in model.text_encoder.state_dict().items()}
    state = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in state.items()}
    mute = tmp_path / "mute.safetensors"
    save_file({k: v * 0 if "final_layer_norm" in k else v for k, v in state.items()}, mute)
    return {"own": str(own), "mute": str(mute)}


@pytest.mark.usefixtures("two_retained")
def test_the_exit_code_says_whether_an_encoder_passes_and_a_resumed_result_is_the_same(
    files: dict[str, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, mute = (["verify", files[name], "--base", "miniature", *TINY, *ATTACK] for name in ("own", "mute"))
    out = tmp_path / "out"
    assert main([*own, "--out", str(out)]) == 1  # it generates the concept
    result = json.loads((out / "verification.json").read_text())
    assert [check["what"] for check in result["checks"] if not check["passed"]][:1] == ["clean"]
    assert result["settings"]["config"]["cases"] == 2 and result["budget"] == "quick"
    assert {"encoder", "original_encoder", "denoiser", "vae", "judge", "encoder_file"} <= result["sha256"].keys()
    assert result["sha256"]["encoder"] == result["sha256"]["original_encoder"]
    # With thresholds that everything meets it passes; attacks and utility come from the file.
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "measure_attack", lambda *args: pytest.fail("measured again"))
        patch.setattr(Evaluator, "measure_utility", lambda *args: pytest.fail("measured again"))
        assert main([*own, "--out", str(out), "--resume", "--max-asr", "1", "--min-retained", "0.5"]) == 0
    resumed = json.loads((out / "verification.json").read_text())
    assert resumed["measured"] == result["measured"]
    assert {key for key, value in resumed["sha256"].items() if value != result["sha256"][key]} == {"limits"}
    # A mute encoder generates nothing of the concept, and nothing else either.
    assert main([*mute, "--out", str(tmp_path / "mute")]) == 1
    checks = json.loads((tmp_path / "mute" / "verification.json").read_text())["checks"]
    assert [check["what"] for check in checks if not check["passed"]] == ["retained"]


def test_a_threshold_without_labelled_prompts_is_an_error(
    files: dict[str, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", files["own"], *TINY, *ATTACK, "--repeats", "0", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "there are no retained prompts with a label" in capsys.readouterr().err
