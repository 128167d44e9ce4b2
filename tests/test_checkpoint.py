"""A run that is interrupted, or killed, and goes on in fresh objects ends with the very weights of one that was not."""

from __future__ import annotations

import dataclasses
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from advunlearn.checkpoint import STATE, Checkpoints
from advunlearn.config import AttackConfig, BankConfig, ConceptConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.events import Progress
from advunlearn.models import TextToImage
from advunlearn.trainer import TrainResult, train

RETAIN = ["a dog", "a photo of a castle"]
CONFIG = TrainConfig(iterations=5, warmup=1, batch=4, retain_weight=1.0, retain_batch=2, lr=1e-4)
# So short-lived a bank that trajectories are renewed in nearly every iteration.
BANK = BankConfig(trajectories=4, retain_trajectories=4, sampling_steps=3, reuse=0.75)


class Cancelled(Exception):
    """What a host raises when the user presses cancel."""


def run(
    model: TextToImage, folder: pathlib.Path | None = None, resume: bool = False, stop: tuple[int, int] | None = None,
    attack: AttackConfig | None = None, config: TrainConfig = CONFIG, every: int = 50,
) -> TrainResult:  # fmt: skip
    """Train; `stop` = (iteration, attack step) cancels there."""

    def cancel(progress: Progress) -> None:
        if progress.phase == "attack" and (progress.iteration, progress.attack_step) == stop:
            raise Cancelled

    keep = Checkpoints(folder, every) if folder else None
    attack = attack or AttackConfig(steps=2, restarts=2)
    return train(model, ConceptConfig(), attack, config, BANK, RETAIN, cancel, checkpoints=keep, resume=resume)


def same(a: TrainResult, b: TrainResult) -> bool:
    """Compare weights and losses bit for bit."""
    x, y = ([*r.encoder.state_dict().values(), *r.denoiser.unet.state_dict().values()] for r in (a, b))  # type: ignore[attr-defined]
    return a.losses == b.losses and all(torch.equal(p, q) for p, q in zip(x, y, strict=True))


@pytest.mark.parametrize("stop", [(1, 1), (3, 2), (4, 1)])
def test_a_cancelled_run_goes_on_bit_for_bit(model: TextToImage, tmp_path: pathlib.Path, stop: tuple[int, int]) -> None:
    whole = run(model)
    with pytest.raises(Cancelled):
        run(model, tmp_path, stop=stop)
    assert same(run(model, tmp_path, resume=True), whole)
    # The comparison can fail: another seed gives other weights.
    assert not same(run(model, config=dataclasses.replace(CONFIG, seed=1)), whole)


def test_the_latest_attack_goes_on_too(model: TextToImage, tmp_path: pathlib.Path) -> None:
    attack = AttackConfig(steps=2, restarts=2, start="latest")
    with pytest.raises(Cancelled):
        run(model, tmp_path, stop=(3, 1), attack=attack)
    assert same(run(model, tmp_path, resume=True, attack=attack), run(model, attack=attack))


@pytest.mark.parametrize(("mode", "method"), [("esd", "text_encoder"), ("esd_unet", "xattn"), ("fast", "full")])
def test_a_finished_run_can_be_made_longer(model: TextToImage, tmp_path: pathlib.Path, mode: str, method: str) -> None:
    short = dataclasses.replace(CONFIG, iterations=2, mode=mode, train_method=method)  # type: ignore[arg-type]
    longer = dataclasses.replace(short, iterations=4)
    run(model, tmp_path, config=short)
    assert same(run(model, tmp_path, resume=True, config=longer), run(model, config=longer))


def test_other_settings_and_missing_or_broken_states_are_refused(model: TextToImage, tmp_path: pathlib.Path) -> None:
    with pytest.raises(AdvUnlearnError, match="holds no state.pt to go on from"):
        run(model, tmp_path, resume=True)
    run(model, tmp_path, config=dataclasses.replace(CONFIG, iterations=2))
    with pytest.raises(AdvUnlearnError, match="train.lr was 0.0001 and is 0.1"):
        run(model, tmp_path, resume=True, config=dataclasses.replace(CONFIG, lr=0.1))
    assert len(list(tmp_path.iterdir())) == 2  # the state and one bank
    (tmp_path / STATE).write_bytes(b"broken")
    with pytest.raises(AdvUnlearnError, match="cannot be read"):
        run(model, tmp_path, resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_file(tmp_path: pathlib.Path) -> None:
    def command(out: pathlib.Path, *more: str) -> list[str]:
        flags = "--iterations 12 --warmup 2 --batch 4 --retain-batch 2 --attack-steps 2 --attack-restarts 2 "
        flags += "--bank-trajectories 4 --bank-retain-trajectories 4 --bank-sampling-steps 4 --bank-reuse 0.5 "
        flags += "--checkpoint-every 1 --device cpu"
        return [sys.executable, "-m", "advunlearn", "train", *flags.split(), "--out", str(out), *more]

    root = pathlib.Path(__file__).parents[1]
    subprocess.run(command(tmp_path / "whole"), cwd=root, check=True, capture_output=True)
    killed = subprocess.Popen(command(tmp_path / "killed"), cwd=root, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / STATE).exists() and killed.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "encoder.safetensors").exists(), "it was too fast to be killed"
    subprocess.run(command(tmp_path / "killed", "--resume"), cwd=root, check=True, capture_output=True)
    a, b = (load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_new_run_in_a_used_folder_keeps_a_bank_of_its_own(model: TextToImage, tmp_path: pathlib.Path) -> None:
    other = dataclasses.replace(CONFIG, seed=1)
    with pytest.raises(Cancelled):
        run(model, tmp_path, stop=(1, 1), config=other)
    with pytest.raises(Cancelled):
        run(model, tmp_path, stop=(1, 1))
    assert same(run(model, tmp_path, resume=True), run(model))


def test_resume_without_a_place_to_go_on_from_is_refused(model: TextToImage, tmp_path: pathlib.Path) -> None:
    with pytest.raises(AdvUnlearnError, match="resume needs checkpoints"):
        run(model, resume=True)
    run(model, tmp_path, config=dataclasses.replace(CONFIG, iterations=3))
    with pytest.raises(AdvUnlearnError, match="has come to iteration 3 already"):
        run(model, tmp_path, resume=True, config=dataclasses.replace(CONFIG, iterations=2))
