from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

import pytest
from PIL import Image

from advunlearn.cli import main

ROOT = pathlib.Path(__file__).parents[1]
TINY = [
    "--bank-trajectories",
    "4",
    "--bank-retain-trajectories",
    "4",
    "--bank-sampling-steps",
    "3",
    "--attack-steps",
    "2",
]
QUICK = ["--cases", "2", "--attack-steps", "2", "--attack-every", "2", "--sampling-steps", "2", "--repeats", "1"]


def json_of(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    start = time.perf_counter()
    code = "import sys; from advunlearn.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["train", "--concept", " "], "concept is empty"),
        (["train", "--iterations", "0"], "iterations is 0; it must be between 1"),
        (["train", "--model", "nowhere"], "model 'nowhere': no such folder; give 'miniature' or a diffusers folder"),
        (["train", "--retain", "nowhere.txt"], "nowhere.txt: no such file"),
        (["evaluate", "--concept", "unicorn"], "the judge knows no object 'unicorn'; it knows dog"),
        (["attack", "--encoder", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["sample", "a dog", "--count", "0"], "--count is 0"),
        (["info", "nowhere.safetensors"], "no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize("argv", [["train", "--mode", "magic"], ["train", "--lr", "fast"], ["fly"], []])
def test_bad_flags_are_one_line_and_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_train_then_info_evaluate_attack_and_sample(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "--iterations", "2", "--warmup", "1", "--out", str(run), "--json", *TINY]) == 0
    assert json_of(capsys)["iterations"] == 2
    encoder = str(run / "encoder.safetensors")
    assert main(["info", encoder, "--json"]) == 0
    info = json_of(capsys)
    assert (info["layers"], info["width"]) == (4, 192)
    assert info["metadata"]["concept"] == "church" and info["metadata"]["recipe"]["train"]["iterations"] == 2
    assert main(["evaluate", encoder, "--out", str(tmp_path / "e"), "--json", *QUICK]) == 0
    report = json_of(capsys)
    assert set(report["models"]) == {"original", "run"}
    assert set(report["models"]["run"]["asr"]) == {"clean", "routes", "unlearndiffatk", "soft_prefix"}
    assert report["models"]["run"]["utility"]["retained_accuracy"]["total"] == 63
    assert report == json.loads((tmp_path / "e" / "report.json").read_text())
    assert main(["attack", "--encoder", encoder, "--out", str(tmp_path / "a"), *QUICK]) == 0
    assert json.loads((tmp_path / "a" / "attack.json").read_text())["asr"]["unlearndiffatk"]["total"] == 2
    assert (
        main(["sample", "a dog", "a church", "--count", "3", "--sampling-steps", "2", "--out", str(tmp_path / "s.png")])
        == 0
    )
    assert Image.open(tmp_path / "s.png").size == (2 * (3 * 66 - 2), 2 * (2 * 66 - 2))


def test_the_unet_baseline_is_saved_as_a_diffusers_unet(tmp_path: pathlib.Path) -> None:
    assert main(["train", "--mode", "esd_unet", "--iterations", "1", "--out", str(tmp_path), *TINY]) == 0
    assert (tmp_path / "unet" / "config.json").is_file()
