"""Two processes that train together make the run that one makes, up to the rounding of sums."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parallel_worker import FLAGS, RUNS, run, trained
from safetensors.torch import load_file
from torch import Tensor

from advunlearn.cli.main import main
from advunlearn.models.loading import TextToImage
from advunlearn.training.trainer import TrainResult

ROOT = pathlib.Path(__file__).parents[2]
# Sums in another order. Adam makes steps as large as any of gradients that are nothing but rounding, such as those of
# the keys' biases, so weights are compared by how far they moved: the length of the difference over that of the way.
LOSSES, WEIGHTS = 1e-6, 1e-3
HALF = 50  # times as far where a bank rounds to half precision what was sampled in other batches
pytestmark = [
    pytest.mark.slow,  # two processes that each load the libraries, and a dozen runs
    pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed"),
]


def launched(rank: int, port: int, argv: list[str]) -> subprocess.Popen[str]:
    """Start a process as accelerate and torchrun start theirs."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    told |= {"OMP_NUM_THREADS": 1, "PYTHONPATH": str(ROOT)}
    # What they print is compared; older libraries warn of their own as they are imported.
    told |= {"PYTHONWARNINGS": "ignore", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
    env = {**os.environ, **{name: str(value) for name, value in told.items()}}
    return subprocess.Popen(
        [sys.executable, *argv], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes did, and what they wrote and printed."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [launched(rank, port, ["tests/support/parallel_worker.py", str(folder)]) for rank in range(2)]
    try:
        printed = [process.communicate(timeout=600) for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], printed
    both = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return {"folder": folder, "printed": printed, "both": both, **both[0]}


@pytest.fixture(scope="module")
def alone(model: TextToImage) -> Callable[[str], TrainResult]:
    """The same runs by one process."""
    return functools.cache(lambda name: run(model, RUNS[name]))


def losses_apart(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """Return the largest difference of losses."""
    assert [row.keys() for row in a] == [row.keys() for row in b]
    return max(abs(x[k] - y[k]) for x, y in zip(a, b, strict=True) for k in y)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the length of the difference of weights."""
    return torch.cat([(a[name] - b[name]).flatten() for name in a.keys() | b.keys()]).norm().item()


def weights_apart(model: TextToImage, a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return how far weights are from each other, of how far they are from those that they were."""
    start = {**model.text_encoder.state_dict(), **model.denoiser.unet.state_dict()}
    start |= {name.removeprefix("text_model."): value for name, value in start.items()}  # in older transformers too
    return distance(a, b) / distance({name: start[name] for name in b}, b)


def saved(folder: pathlib.Path) -> dict[str, Tensor]:
    """Return a run's encoder by transformers' names."""
    weights = load_file(folder / "encoder.safetensors")
    return {k.removeprefix("text_model."): v for k, v in weights.items() if k.startswith("text_model.")}


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(
    together: dict[str, Any], model: TextToImage, alone: Callable[[str], TrainResult], name: str
) -> None:
    one, done = alone(name), together["runs"][name]
    looser = HALF if name == "half" else 1
    assert losses_apart(done["losses"], one.losses) < LOSSES * looser
    assert weights_apart(model, done["weights"], trained(one)) < WEIGHTS * looser
    other = together["both"][1]["runs"][name]  # and both have the very same
    assert other["losses"] == done["losses"] and distance(other["weights"], done["weights"]) == 0


def test_the_comparison_can_fail(
    together: dict[str, Any], model: TextToImage, alone: Callable[[str], TrainResult]
) -> None:
    one, deaf = alone("even"), together["runs"]["deaf"]
    assert weights_apart(model, deaf["weights"], trained(one)) > 100 * WEIGHTS  # each trained on its own share alone
    assert losses_apart(deaf["losses"], one.losses) > 100 * LOSSES
    config, *others = RUNS["even"]
    seeded, done = run(model, (replace(config, seed=1), *others)), together["runs"]["even"]
    assert weights_apart(model, done["weights"], trained(seeded)) > 100 * WEIGHTS
    assert losses_apart(done["losses"], seeded.losses) > 100 * LOSSES


def test_a_stop_of_one_stops_both_and_they_go_on(together: dict[str, Any], model: TextToImage) -> None:
    assert [of["stopped"] for of in together["both"]] == [2, 2]
    whole, resumed = together["runs"]["even"], together["runs"]["resumed"]
    assert resumed["losses"] == whole["losses"] and distance(resumed["weights"], whole["weights"]) == 0
    # What two processes kept, one goes on with: the bank is all there.
    one, whole = run(model, RUNS["odd"], folder=together["folder"] / "for-one", resume=True), together["runs"]["odd"]
    assert len(one.losses) == len(whole["losses"]) and losses_apart(one.losses, whole["losses"]) < LOSSES
    assert weights_apart(model, trained(one), whole["weights"]) < WEIGHTS


def test_the_command_line_has_one_writer(together: dict[str, Any], model: TextToImage, tmp_path: pathlib.Path) -> None:
    assert [of["codes"] for of in together["both"]] == [[130, 0, 1], [130, 0, 1]]
    out, folder = tmp_path / "one", together["folder"] / "run"
    assert main(["train", "--out", str(out), *FLAGS.split()]) == 0
    names = [
        sorted(str(p.relative_to(f)) for p in f.rglob("*") if not p.name.startswith("bank-")) for f in (out, folder)
    ]
    assert names[0] == names[1]
    losses = [json.loads((f / "train.json").read_text())["losses"] for f in (folder, out)]
    assert losses_apart(*losses) < LOSSES and len((folder / "log.jsonl").read_text().splitlines()) == 3
    assert weights_apart(model, saved(folder), saved(out)) < WEIGHTS
    assert json.loads((folder / "config.json").read_text())["about"]["processes"] == 2
    assert (together["folder"] / "diverged" / "last-good.safetensors").is_file()
    (stdout, stderr), silent = together["printed"]
    assert stdout.count("encoder.safetensors") == 1 and "Resume with: advunlearn train --resume" in stderr
    assert "loss nan" in stderr and silent == ("", "")


def test_what_two_processes_cannot_share_is_refused(together: dict[str, Any]) -> None:
    batch, restarts, bank, words, official = together["refusals"]
    assert batch == "batch is 1, which 2 processes cannot share; give at least 2, or start fewer processes"
    assert restarts.startswith("attack restarts is 1") and bank.startswith("bank retain_trajectories is 1")
    assert "inversion adversary" in words and "mode official" in official
    assert all("train in one" in text for text in (words, official))
