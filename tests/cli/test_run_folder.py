"""The files of a run folder."""

from __future__ import annotations

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from advunlearn.cli.commands import train as runs
from advunlearn.cli.main import main
from advunlearn.cli.run_folder import Log, draw_losses
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.reporting.training_samples import Samples

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = "--iterations 3 --warmup 1 --batch 4 --retain-batch 2 --attack-steps 2 --attack-restarts 2 --device cpu "
FLAGS += "--bank-trajectories 4 --bank-retain-trajectories 4 --bank-sampling-steps 3"
HISTORY = [{"loss": 1.5, "erase": 0.1 + 0.2}, {"loss": 0.5, "erase": 1e-7}, {"loss": 0.25, "erase": 3.0}]


def same(a: pathlib.Path, b: pathlib.Path) -> bool:
    """Compare encoders bit for bit, and what they say of themselves."""
    with safe_open(a / "encoder.safetensors", "pt") as x, safe_open(b / "encoder.safetensors", "pt") as y:
        equal = all(torch.equal(x.get_tensor(k), y.get_tensor(k)) for k in x.keys())  # noqa: SIM118
        return equal and x.metadata() == y.metadata()


def rows(log: Log) -> list[dict[str, float]]:
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def test_the_saved_settings_reproduce_a_run_and_samples_disturb_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = functools.partial(Samples, config=EvaluateConfig(sampling_steps=2))
    monkeypatch.setattr(runs, "Samples", quick)
    a, b, retain = tmp_path / "a", tmp_path / "b", tmp_path / "mine.txt"
    retain.write_text("a dog\na castle\n")
    own = ["--retain", str(retain), "--retain-set", "none"]
    assert main(["train", "--out", str(a), *own, "--sample-every", "2", *FLAGS.split()]) == 0
    assert sorted(p.name for p in a.iterdir() if not p.name.startswith("bank-")) == [
        "config.json",
        "encoder.safetensors",
        "log.jsonl",
        "loss.svg",
        "retain.txt",
        "samples",
        "state.pt",
        "train.json",
    ]
    assert sorted(p.name for p in (a / "samples").iterdir()) == ["000000.png", "000002.png", "000003.png"]
    assert Image.open(a / "samples" / "000003.png").size[1] == 2 * 128 + 6  # the concept and a retained prompt
    said = capsys.readouterr().err
    assert f"{retain}: 2 prompts: the first 'a dog', the last 'a castle'\n" in said
    assert "erases 1 object: 'church'; trained prompts: 'a church'\nretains 2 prompts; 0 left out" in said
    written = json.loads((a / "train.json").read_text())
    assert (written["erased"], written["left_out"], written["retained_prompts"]) == (["church"], [], 2)
    losses = written["losses"]
    logged = [{k: v for k, v in row.items() if k not in ("iteration", "seconds")} for row in rows(Log(a / "log.jsonl"))]
    assert logged == losses and len(losses) == 3 and (a / "retain.txt").read_text() == "a dog\na castle\n"
    config = str(a / "config.json")
    assert main(["train", "--config", config, "--out", str(b), "--sample-every", "0"]) == 0
    assert same(a, b) and not (b / "samples").exists()
    # The comparison can fail.
    assert main(["train", "--config", config, "--out", str(b), "--seed", "1"]) == 0
    assert not same(a, b) and (b / "samples").exists()
    # An unfinished run is not overwritten.
    (b / "train.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in b.rglob("*")}
    assert main(["train", "--config", config, "--out", str(b)]) == 2
    assert "holds an unfinished run; give --resume" in capsys.readouterr().err
    # Nor is one that is to be resumed with other settings.
    assert main(["train", "--resume", "--lr", "0.5", "--out", str(b)]) == 2
    assert "train.lr was" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in b.rglob("*")}


def test_the_log_is_what_the_history_says(tmp_path: pathlib.Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    for i in range(3):
        log.write(HISTORY[: i + 1], 1.0)
    assert rows(log) == [{"iteration": i, **row, "seconds": 1.0} for i, row in enumerate(HISTORY, 1)]
    # A run that goes on after its first iteration: the other lines are cut, the new one is added.
    log = Log(log.path)
    log.write([HISTORY[0], HISTORY[2]], 2.0)
    assert [(r["loss"], r["seconds"]) for r in rows(log)] == [(1.5, 1.0), (0.25, 2.0)]
    # Half a line, a line of another run and a lost one are made good; a line that is right is left.
    for text in ('{"iteration": 1, "lo', '{"iteration": 1, "loss": 9.0}\n[3]\n', "not JSON\n\xff\n", ""):
        log.path.write_text(text, encoding="latin-1")
        log.repair(HISTORY)
        assert rows(log) == [{"iteration": i, **row} for i, row in enumerate(HISTORY, 1)]
    log.repair([])
    assert log.path.read_text() == ""


def test_the_loss_picture_is_an_svg_file_with_every_loss() -> None:
    attacked = [{**row, "attack_start": 0.5, "attack_end": float("nan")} for row in HISTORY]
    root = ElementTree.fromstring(draw_losses([HISTORY[0], *attacked]))
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"erase", "attack start", "attack end", "iteration", "Training losses"} <= set(texts)
    assert ElementTree.fromstring(draw_losses(HISTORY[:1])).tag == "{http://www.w3.org/2000/svg}svg"


def test_nothing_of_a_tracker_or_yaml_is_imported_unless_asked_for() -> None:
    code = "import sys, advunlearn.cli.config_file, advunlearn.cli.trackers\n"
    code += "print({'yaml', 'accelerate'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_tracker_that_is_not_there_is_one_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    accelerate = importlib.util.find_spec("accelerate")
    assert main(["train", "--tracker", "tensorbord", "--out", str(tmp_path)]) == 2
    says = "the nearest is tensorboard" if accelerate else "needs the package accelerate; pip install accelerate"
    error = capsys.readouterr().err
    assert says in error.splitlines()[-1] and error.count("advunlearn train: ") == 1 and not list(tmp_path.iterdir())
    missing = [n for n in ("wandb", "tensorboard") if not (importlib.util.find_spec(n) and accelerate)]
    for name in missing:
        assert main(["train", "--tracker", name, "--out", str(tmp_path), *FLAGS.split()]) == 2
        says = f"tracker '{name}' is not installed" if accelerate else "needs the package accelerate"
        assert says in capsys.readouterr().err


def test_tensorboard_is_told_every_loss(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert (
        main(["train", "--tracker", "tensorboard", "--out", str(tmp_path), "--sample-every", "0", *FLAGS.split()]) == 0
    )
    events = EventAccumulator(str(tmp_path / "advunlearn"))
    events.Reload()
    losses = json.loads((tmp_path / "train.json").read_text())["losses"]
    for name in ("loss", "erase", "retain"):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        assert told == [(i, pytest.approx(row[name])) for i, row in enumerate(losses, 1)]


def test_intermediate_encoders_are_kept_and_compared(
    tmp_path: pathlib.Path, tiny_folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*FLAGS.split(), "--model", str(tiny_folder), "--sample-every", "0"]
    assert main(["train", "--out", str(tmp_path), *flags, "--keep-every", "2"]) == 0
    kept = tmp_path / "snapshots"
    assert sorted(path.name for path in kept.iterdir()) == ["000002.safetensors", "snapshots.json"]
    with safe_open(kept / "000002.safetensors", "pt") as file:
        assert json.loads(file.metadata()["advunlearn.iterations"]) == 2
    rows = json.loads((kept / "snapshots.json").read_text())
    assert [(row["iteration"], row["name"]) for row in rows] == [(2, "000002.safetensors"), (3, "encoder.safetensors")]
    assert "best by this quick measure" in capsys.readouterr().err
    # The intermediate encoder is that of a run of this length, and not the last one.
    assert main(["train", "--out", str(tmp_path / "short"), *flags, "--iterations", "2"]) == 0
    with safe_open(kept / "000002.safetensors", "pt") as a, safe_open(tmp_path / "encoder.safetensors", "pt") as b:
        last = [a.get_tensor(key).equal(b.get_tensor(key)) for key in a.keys()]  # noqa: SIM118
    with (
        safe_open(kept / "000002.safetensors", "pt") as a,
        safe_open(tmp_path / "short" / "encoder.safetensors", "pt") as b,
    ):
        assert all(a.get_tensor(key).equal(b.get_tensor(key)) for key in a.keys()) and not all(last)  # noqa: SIM118
    # A run that is refused leaves them; a new run in the folder removes them, whether or not it keeps its own.
    refused = [*flags, "--keep-every", "2", "--warmup", "9"]
    assert main(["train", "--out", str(tmp_path), *refused]) == 2 and len(list(kept.iterdir())) == 2
    assert main(["train", "--out", str(tmp_path), *flags]) == 0 and not list(kept.iterdir())


def test_a_run_on_a_unet_keeps_no_text_encoders(
    tmp_path: pathlib.Path, tiny_folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*FLAGS.split(), "--model", str(tiny_folder), "--train-method", "xattn", "--keep-every", "2"]
    assert main(["train", "--out", str(tmp_path), *flags]) != 0
    assert "keep_every keeps the text encoder of Stable Diffusion 1.x" in capsys.readouterr().err
