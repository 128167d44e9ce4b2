from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import constant_classifier

from advunlearn.cli.commands import demo as demo_command
from advunlearn.cli.commands import train as train_command
from advunlearn.cli.main import main
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation import evaluator as evaluate
from advunlearn.evaluation.cases import Cases, make_cases
from advunlearn.formats.text_encoders import save_encoder
from advunlearn.models.loading import TextToImage
from advunlearn.models.unet_files import load_unet, save_unet
from advunlearn.reporting.training_samples import Samples

ROOT = pathlib.Path(__file__).parents[2]
TINY = [
    "--bank-trajectories",
    "4",
    "--bank-retain-trajectories",
    "4",
    "--bank-sampling-steps",
    "3",
    "--attack-steps",
    "2",
    "--attack-restarts",
    "2",
    "--batch",
    "4",
    "--retain-batch",
    "4",
    "--sample-every",
    "0",
]
QUICK = ["--cases", "2", "--attack-steps", "2", "--judge-interval", "2", "--sampling-steps", "2", "--repeats", "1"]


def json_of(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "transformers", "diffusers", "huggingface_hub", "accelerate", "PIL", "yaml")
    code = "import atexit, sys; from advunlearn.cli.main import main\n"
    code += f"atexit.register(lambda: print({set(heavy)} & set(sys.modules)))\n"
    code += "main(['train', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nset()\n") and "--attack-restarts" in done.stdout


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["train", "--concept", " "], "concept is empty"),
        (["train", "--iterations", "0"], "iterations is 0; it must be between 1"),
        (["train", "--iterations", "5", "--warmup", "5"], "warmup is"),
        (["train", "--device", "nonsense"], "device 'nonsense' cannot be used here"),
        (["train", "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["train", "--out", "a-file"], "--out 'a-file' is a file; give a folder"),
        (["demo", "--kind", "style"], "the judge knows no style 'church'; it knows noto"),
        (["demo", "--seed", "-1"], "seed is -1; it must be between 0"),
        (["train", "--quirks", "fast"], "quirks has 'fast'; there are result_before_last_step, gradient_accumulates"),
        (["evaluate", "--concept", "apple\nbanana", "--cases", "1"], "there are 2 concepts and 1 cases; raise cases"),
        (["evaluate", "--kind", "prompt", "--concept", "a unicorn"], "in the prompt 'a unicorn'; it knows dog"),
        (["evaluate", "--kind", "prompt", "--concept", "a dog and a cat"], "names dog, cat; give one of them"),
        (["sample", "a dog", "--out", "x.gif"], "--out 'x.gif': give a name that ends in .png, .jpg"),
        (["evaluate", "--judge", "."], "no config.json there"),
        (["sample", "a dog", "--out", "."], "--out '.' is a folder"),
        (["train", "--model", "nowhere"], "model 'nowhere': no such folder or file; give 'miniature'"),
        (["train", "--retain", "nowhere.txt"], "nowhere.txt: no such file"),
        (["evaluate", "--concept", "unicorn"], "the judge knows no object 'unicorn'; it knows dog"),
        (["attack", "--encoder", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["sample", "a dog", "--count", "0"], "--count is 0"),
        (["sample", "a dog", "--unet", "nowhere"], "nowhere: no such file; give a diffusers UNet's folder"),
        (["evaluate", "--judge", "nowhere"], "judge 'nowhere': no such folder; give a folder written by"),
        (["evaluate", "--judge", "clip:nowhere"], "judge 'nowhere': no such folder"),
        (["attack", "--threshold", "0.5"], "--threshold is no setting of the judge 'miniature'"),
        (["evaluate", "--judge", "nudity", "--top-k", "2"], "--top-k is no setting of the judge 'nudity'"),
        (["evaluate", "--judge", "nudity", "--threshold", "2"], "threshold is 2.0; it must be between 0.25 and 1"),
        (
            ["evaluate", "--prompts", "nowhere.txt"],
            "no such file; give a text file with one prompt per line",
        ),
        (["evaluate", "--retained", "a-file"], 'a-file holds no prompt; write one "prompt | label" per line'),
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
    (tmp_path / "a-file").touch()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_device_that_is_full_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(args: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB.")

    monkeypatch.setattr(train_command, "run", full)
    assert main(["train"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("advunlearn train: ") and error.count("\n") == 1 and "Tried to allocate 20.00 MiB" in error
    assert "advunlearn estimate" in error and "--checkpointing" in error


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
    assert set(report["models"]["run"]["asr"]) == {"clean", "synonyms", "unlearndiffatk", "soft_prefix"}
    assert report["models"]["run"]["utility"]["retained_accuracy"]["total"] == 63
    assert report["models"]["run"]["config"]["train"]["iterations"] == 2 and report["models"]["run"]["seconds"] is None
    assert report["models"]["original"]["config"] == {} and report["models"]["original"]["seconds"] == 0.0
    assert report == json.loads((tmp_path / "e" / "report.json").read_text())
    assert main(["attack", "--encoder", encoder, "--out", str(tmp_path / "a"), *QUICK]) == 0
    assert json.loads((tmp_path / "a" / "attack.json").read_text())["asr"]["unlearndiffatk"]["total"] == 2
    assert (
        main(["sample", "a dog", "a church", "--count", "3", "--sampling-steps", "2", "--out", str(tmp_path / "s.png")])
        == 0
    )
    assert Image.open(tmp_path / "s.png").size == (2 * (3 * 66 - 2), 2 * (2 * 66 - 2))


def test_another_judge_and_ones_own_lines(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    folder = str(constant_classifier(tmp_path / "judge", {"tench": 0.0, "church, church building": 1.0}))
    prompts, retained, out = tmp_path / "prompts.txt", tmp_path / "retained.txt", tmp_path / "out"
    prompts.write_text("# mine\na chapel\n")
    retained.write_text("a fish | Tench\na house\n")
    flags = ["--judge", folder, "--prompts", str(prompts), "--out", str(out), "--json", *QUICK]
    assert main(["evaluate", "--retained", str(retained), *flags]) == 0
    report = json_of(capsys)
    row = report["models"]["original"]
    assert row["asr"]["clean"] == {"success": 2, "total": 2} and "synonyms" not in row["asr"]
    assert set(row["utility"]) == {"retained_accuracy", "feature_distance"}
    assert row["utility"]["retained_accuracy"] == {"correct": 0, "total": 1}  # a house has no label
    assert report["judge"].items() >= {"judge": "classifier", "folder": "judge", "top_k": 1}.items()
    assert report["own_prompts"] == ["a chapel"]
    page = (out / "report.html").read_text()
    assert re.search(r"Judge: classifier. Folder: judge. Weights: \w{12}. Top K: 1.", page)
    assert "0 of 1 retained objects correct" in page
    # With nothing to keep there is no retained figure, in the table and in words.
    assert main(["evaluate", "--judge", folder, "--out", str(out), *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["original", "2/2", "-", "2/2", "2/2", *["not", "measured"] * 4]
    assert lines[2:4] == [
        "not measured: retained (there are no retained prompts with a label)",
        "not measured: pairs, backgrounds, in-prompt (the judge does not know two objects besides the concept)",
    ]
    assert "retained objects correct" not in (out / "report.html").read_text().split("<table")[0]
    assert main(["attack", "--concept", "tench", "--top-k", "2", *flags]) == 0
    assert json_of(capsys)["judge"]["top_k"] == 2
    assert main(["attack", "--concept", "chruch", *flags]) == 2
    assert "similar: 'church, church building'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_unet_is_trained_saved_in_both_forms_measured_attacked_and_drawn_with(
    model: TextToImage, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(train_command, "Samples", partial(Samples, config=EvaluateConfig(sampling_steps=1)))
    flags = ["--mode", "esd_unet", "--iterations", "1", "--lr", "0.01", "--single-file", "--out", str(run), "--json"]
    assert main(["train", *flags, *TINY, "--sample-every", "1"]) == 0
    folder, single = str(run / "unet"), str(run / "checkpoint.safetensors")
    assert json_of(capsys)["file"] == folder and not (run / "encoder.safetensors").exists()
    (a, metadata), (b, _) = (load_unet(path, model.denoiser) for path in (folder, single))  # type: ignore[arg-type]
    weights, other = a.unet.state_dict(), b.unet.state_dict()
    assert all(torch.equal(weights[k], other[k]) for k in weights)
    assert json.loads(metadata["advunlearn.recipe"])["train"]["mode"] == "esd_unet"
    pictures = []
    for flag in ([], ["--unet", folder], ["--unet", single]):
        out = tmp_path / "s.png"
        assert main(["sample", "a church", "--count", "1", "--sampling-steps", "2", *flag, "--out", str(out)]) == 0
        pictures.append(out.read_bytes())
    assert pictures[0] != pictures[1] == pictures[2]
    capsys.readouterr()
    quick = [*QUICK, "--repeats", "0", "--json"]
    flags = ["--unet", folder, "--unet", single, "--out", str(tmp_path / "e")]
    assert main(["evaluate", *flags, *quick]) == 0
    models = json_of(capsys)["models"]
    assert list(models) == ["original", "run", single]
    assert models["run"]["asr_by_budget"] == models[single]["asr_by_budget"]
    assert models["run"]["config"]["train"]["mode"] == "esd_unet" == models[single]["config"]["train"]["mode"]
    assert main(["attack", "--unet", folder, "--out", str(tmp_path / "a"), *quick]) == 0
    assert json_of(capsys)["asr"]["unlearndiffatk"] == models["run"]["asr"]["unlearndiffatk"]
    save_unet(tmp_path / "other", a.unet, {"advunlearn.base_sha256": "0" * 64, "advunlearn.base_model": "sd15"})
    assert main(["sample", "a dog", "--unet", str(tmp_path / "other"), "--out", str(tmp_path / "x.png")]) == 2
    assert "was trained from the text encoder of 'sd15'" in capsys.readouterr().err


def test_a_unet_that_diverges_is_kept_as_it_last_was(
    model: TextToImage, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    flags = ["--mode", "esd", "--train-method", "full", "--iterations", "5", "--lr", "1", "--out", str(tmp_path)]
    assert main(["train", *flags, *TINY]) == 1
    assert "Lower lr" in capsys.readouterr().err
    _, metadata = load_unet(tmp_path / "last-good-unet", model.denoiser)  # type: ignore[arg-type]
    assert "the last good weights" in metadata["advunlearn.error"]


def test_demo_writes_the_whole_report(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's first command, with a few iterations, and of what is retained the neighbours alone."""

    def few(*args: Any) -> Cases:
        cases = make_cases(*args)
        return replace(cases, retained=cases.neighbours)

    monkeypatch.setattr(evaluate, "make_cases", few)
    short = {name: run.replace(attack={"steps": 2}) for name, run in demo_command.RECIPES.items()}
    monkeypatch.setattr(demo_command, "RECIPES", short)
    monkeypatch.setattr(demo_command, "DEMO_TRAIN", {"iterations": 2, "warmup": 1})
    monkeypatch.setattr(demo_command, "DEMO_BANK", {"trajectories": 4, "retain_trajectories": 4, "sampling_steps": 3})
    monkeypatch.setattr(demo_command, "DEMO_BUDGET", {"repeats": 1})
    flags = ["--cases", "2", "--attack-steps", "2", "--sampling-steps", "2", "--concept", "castle"]
    assert main(["demo", "--json", "--out", str(tmp_path), *flags]) == 0
    report = json_of(capsys)
    assert report["concept"] == "castle"
    assert list(report["models"]) == ["original", "esd", "esd_text", "advunlearn"]
    for row in report["models"].values():
        assert all(set(c) >= {"success", "total"} and c["total"] == 2 for c in row["asr"].values())
        assert set(row["asr"]) == {"clean", "synonyms", "unlearndiffatk", "soft_prefix"}
        assert {"retained_accuracy", "neighbour_accuracy", "feature_distance"} <= set(row["utility"])
        assert "seconds" in row and "config" in row
    with Image.open(tmp_path / "original.png") as first:  # 2 rows of 6 images, enlarged
        assert first.size[0] > 5 * 64 * 4 and first.size[1] > 64 * 4
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64") >= 8 and "<svg" in page and "http" not in page.split("<body")[1]
    assert Image.open(tmp_path / "overview.png").height > 500
    assert main(["info", str(tmp_path / "encoder.safetensors"), "--json"]) == 0
    metadata = json_of(capsys)["metadata"]
    assert metadata["scores"]["asr"] == report["models"]["advunlearn"]["asr"]
    assert metadata["concept"] == "castle" and len(metadata["base_sha256"]) == 64


def test_an_encoder_of_another_base_is_refused(
    model: TextToImage, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    metadata = {"advunlearn.base_sha256": "0" * 64, "advunlearn.base_model": "sd15"}
    path = save_encoder(tmp_path / "other.safetensors", model.text_encoder, metadata)
    assert main(["sample", "a dog", "--encoder", str(path), "--out", str(tmp_path / "x.png")]) == 2
    assert "was trained from the text encoder of 'sd15'" in capsys.readouterr().err
