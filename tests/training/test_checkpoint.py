"""A run that is interrupted, or killed, and goes on in fresh objects ends with the very weights of one that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from advunlearn.cli.main import main
from advunlearn.cli.run_folder import LOG, SAMPLES
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError, TrainingDiverged
from advunlearn.files import STATE, write_atomic
from advunlearn.models.loading import TextToImage
from advunlearn.training.bank import BankSamples, TrajectoryBank
from advunlearn.training.checkpoint import Checkpoints
from advunlearn.training.events import Progress
from advunlearn.training.trainer import TrainResult, train

ROOT = pathlib.Path(__file__).parents[2]
RETAIN = ["a dog", "a photo of a castle"]
CONFIG = TrainConfig(iterations=5, warmup=1, batch=4, retain_weight=1.0, retain_batch=2, lr=1e-4)
# So short-lived a bank that trajectories are renewed in nearly every iteration.
BANK = BankConfig(trajectories=4, retain_trajectories=4, sampling_steps=3, draws_per_sample=0.75)


@pytest.fixture(scope="module")
def model(tiny_model: TextToImage) -> TextToImage:
    """What is tested here is the run around the mathematics."""
    return tiny_model


@pytest.fixture(scope="module", autouse=True)
def rotating() -> Iterator[None]:
    """Banks of 4 trajectories are sampled 2 at a time, so that what is replaced next differs between the iterations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrajectoryBank, "chunk", 2)
        yield


class Cancelled(Exception):
    """What a host raises when the user presses cancel."""


def run(
    model: TextToImage,
    folder: pathlib.Path | None = None,
    resume: bool = False,
    stop: tuple[int, int] | None = None,
    attack: AdversaryConfig | None = None,
    config: TrainConfig = CONFIG,
    every: int = 50,
) -> TrainResult:
    """Train; `stop` = (iteration, attack step) cancels there."""

    def cancel(progress: Progress) -> None:
        if progress.phase == "attack" and (progress.iteration, progress.attack_step) == stop:
            raise Cancelled

    keep = Checkpoints(folder, every) if folder else None
    attack = attack or AdversaryConfig(steps=2, restarts=2)
    return train(
        model,
        RunConfig(concept=ConceptConfig(), attack=attack, train=config, bank=BANK),
        RETAIN,
        callback=cancel,
        checkpoints=keep,
        resume=resume,
    )


def same(a: TrainResult, b: TrainResult) -> bool:
    """Compare weights and losses bit for bit."""
    x, y = ([*r.encoder.state_dict().values(), *r.denoiser.unet.state_dict().values()] for r in (a, b))  # type: ignore[attr-defined]
    return a.losses == b.losses and all(torch.equal(p, q) for p, q in zip(x, y, strict=True))


@pytest.fixture(scope="module")
def whole(model: TextToImage) -> TrainResult:
    """A run that nothing interrupts."""
    return run(model)


@pytest.mark.parametrize("stop", [(1, 1), (3, 2), (4, 1)])
def test_a_cancelled_run_goes_on_bit_for_bit(
    model: TextToImage, whole: TrainResult, tmp_path: pathlib.Path, stop: tuple[int, int]
) -> None:
    with pytest.raises(Cancelled):
        run(model, tmp_path, stop=stop)
    assert same(run(model, tmp_path, resume=True), whole)


def test_another_seed_is_another_run(model: TextToImage, whole: TrainResult) -> None:
    """The comparison can fail."""
    assert not same(run(model, config=dataclasses.replace(CONFIG, seed=1)), whole)


@pytest.mark.parametrize("radius", [0.0, 0.5])
def test_the_latest_attack_goes_on_too(model: TextToImage, tmp_path: pathlib.Path, radius: float) -> None:
    attack = AdversaryConfig(steps=2, restarts=2, start="latest", radius=radius)
    with pytest.raises(Cancelled):
        run(model, tmp_path, stop=(3, 1), attack=attack)
    assert same(run(model, tmp_path, resume=True, attack=attack), run(model, attack=attack))


@pytest.mark.parametrize(("mode", "method"), [("esd", "text_encoder"), ("esd_unet", "xattn"), ("fast", "full")])
def test_a_finished_run_can_be_made_longer(model: TextToImage, tmp_path: pathlib.Path, mode: str, method: str) -> None:
    short = dataclasses.replace(CONFIG, iterations=2, mode=mode, train_method=method)  # type: ignore[arg-type]
    longer = dataclasses.replace(short, iterations=4)
    run(model, tmp_path, config=short)
    assert same(run(model, tmp_path, resume=True, config=longer), run(model, config=longer))


def test_a_run_that_is_done_may_be_resumed_and_then_made_longer(model: TextToImage, tmp_path: pathlib.Path) -> None:
    short, longer = (dataclasses.replace(CONFIG, iterations=n) for n in (3, 6))
    run(model, tmp_path, config=short)
    done = run(model, tmp_path, resume=True, config=short)
    assert done.iterations == 3
    assert same(run(model, tmp_path, resume=True, config=longer), run(model, config=longer))


def test_other_settings_and_missing_or_broken_states_are_refused(model: TextToImage, tmp_path: pathlib.Path) -> None:
    with pytest.raises(AdvUnlearnError, match="holds no state.pt to resume"):
        run(model, tmp_path, resume=True)
    run(model, tmp_path, config=dataclasses.replace(CONFIG, iterations=2))
    with pytest.raises(AdvUnlearnError, match="train.lr was 0.0001 and is 0.1"):
        run(model, tmp_path, resume=True, config=dataclasses.replace(CONFIG, lr=0.1))
    assert len(list(tmp_path.iterdir())) == 2  # the state and one bank
    (tmp_path / STATE).write_bytes(b"broken")
    with pytest.raises(AdvUnlearnError, match="cannot be read"):
        run(model, tmp_path, resume=True)


def test_the_first_state_is_that_of_the_full_bank(
    model: TextToImage, whole: TrainResult, tmp_path: pathlib.Path
) -> None:
    keep, first = Checkpoints(tmp_path / "run"), tmp_path / "first"

    def stop(progress: Progress) -> None:
        assert keep.exists() == (progress.phase != "bank")
        if keep.exists():
            shutil.copytree(keep.folder, first)  # what kill -9 would leave
            raise Cancelled

    with pytest.raises(Cancelled):
        train(
            model,
            RunConfig(concept=ConceptConfig(), attack=AdversaryConfig(steps=2, restarts=2), train=CONFIG, bank=BANK),
            RETAIN,
            callback=stop,
            checkpoints=keep,
        )
    assert not torch.load(first / STATE)["history"]
    assert same(run(model, first, resume=True), whole)


def test_a_run_without_a_state_begins_again_with_its_settings(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert main(["train", "--resume", "--out", out]) == 2
    assert f"{out} holds no run to resume; leave --resume out" in capsys.readouterr().err
    flags = "--iterations 2 --warmup 1 --batch 2 --retain-batch 2 --attack-steps 1 --attack-restarts 1 "
    flags += "--bank-trajectories 2 --bank-retain-trajectories 2 --bank-sampling-steps 2 --sample-every 0 "
    flags += "--concept castle"
    sampled, sample = [0], TrajectoryBank._sample

    def interrupted(bank: TrajectoryBank, *rest: Any) -> None:
        sampled[0] += 1
        if sampled[0] > 1:  # the bank of what is retained
            raise KeyboardInterrupt
        sample(bank, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryBank, "_sample", interrupted)
        assert main(["train", *flags.split(), "--out", out]) == 130
    said = capsys.readouterr().err
    assert f"the bank was not complete; the settings are saved in {out}. Resume with: advunlearn train" in said
    assert main(["train", "--resume", "--out", out]) == 0
    done = json.loads((tmp_path / "run" / "train.json").read_text())
    assert done["config"]["concept"]["concept"] == "castle" and len(done["losses"]) == 2
    (tmp_path / "run" / STATE).unlink()
    capsys.readouterr()
    assert main(["train", "--resume", "--iterations", "4", "--out", out]) == 2
    assert f"{out} holds a run whose state.pt is missing" in capsys.readouterr().err
    assert (tmp_path / "run" / "train.json").is_file()


def test_a_run_that_diverges_before_its_second_state_leaves_none(
    model: TextToImage, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, draw = Checkpoints(tmp_path, 2), TrajectoryBank.draw
    for draws, left in ((4, False), (40, True)):
        drawn = [0]

        def poisoned(
            bank: TrajectoryBank,
            *args: Any,
            drawn: list[int] = drawn,
            draws: int = draws,
            **options: Any,
        ) -> BankSamples:
            drawn[0] += 1
            found = draw(bank, *args, **options)
            return dataclasses.replace(found, cond=found.cond * float("nan")) if drawn[0] > draws else found

        with monkeypatch.context() as patch, pytest.raises(TrainingDiverged):
            patch.setattr(TrajectoryBank, "draw", poisoned)
            config = dataclasses.replace(CONFIG, iterations=12)
            train(
                model,
                RunConfig(concept=ConceptConfig(), attack=AdversaryConfig(steps=1), train=config, bank=BANK),
                RETAIN,
                checkpoints=keep,
            )
        assert keep.exists() == left


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_run_that_was_interrupted_and_killed_goes_on_and_ends_with_the_same_files(
    tiny_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: ctrl-C in the first, kill -9 in the second, and the third, this one, comes to the end."""
    monkeypatch.setattr(TrajectoryBank, "chunk", 32)  # as in the processes
    flags = "--iterations 6 --warmup 2 --batch 4 --retain-batch 2 --attack-steps 2 --attack-restarts 2 "
    flags += "--bank-trajectories 4 --bank-retain-trajectories 4 --bank-sampling-steps 3 --bank-draws-per-sample 0.5 "
    flags += f"--checkpoint-every 1 --sample-every 3 --device cpu --model {tiny_folder}"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}

    def stopped(how: signal.Signals, kept: int, *argv: str) -> str:
        """Train in a process until so many iterations are logged, then send a signal; return the last line it says."""
        command = [sys.executable, "-m", "advunlearn", "train", "--out", str(cut), *argv]
        # A shell's background job ignores ctrl-C, and so would what it starts.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        log = cut / LOG
        while not (log.exists() and log.read_bytes().count(b"\n") >= kept) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(how)
        said = process.communicate()[1].decode()
        assert process.returncode == (130 if how == signal.SIGINT else -how), said
        return said.splitlines()[-1]

    assert main(["train", "--out", str(whole), *flags.split()]) == 0
    said = stopped(signal.SIGINT, 2, *flags.split())
    assert said == (
        f"advunlearn train: interrupted; progress is saved in {cut}. Resume with: advunlearn train --resume --out {cut}"
    )
    kept = len(torch.load(cut / STATE, weights_only=True)["history"])
    assert 2 <= kept < 6 and not (cut / "encoder.safetensors").exists()
    # What the log has beyond the state, and half a line of it, is cut; what it lost is written again.
    lines = (cut / LOG).read_text().splitlines(keepends=True)
    (cut / LOG).write_text("".join([*lines[:1], *lines[2:], lines[-1], '{"iteration": 99']))
    stopped(signal.SIGKILL, min(kept + 1, 4), "--resume")
    assert main(["train", "--resume", "--out", str(cut)]) == 0
    a, b = (load_file(folder / "encoder.safetensors") for folder in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)
    rows = [[json.loads(line) for line in (folder / LOG).read_text().splitlines()] for folder in (whole, cut)]
    x, y = ([{k: v for k, v in row.items() if k != "seconds"} for row in log] for log in rows)
    assert x == y and [row["iteration"] for row in y] == list(range(1, 7))
    names = [
        sorted(p.relative_to(folder) for p in folder.rglob("*") if "bank" not in p.name) for folder in (whole, cut)
    ]
    assert names[0] == names[1] and len(list((cut / SAMPLES).iterdir())) == 3
    assert all((whole / SAMPLES / p.name).read_bytes() == p.read_bytes() for p in (cut / SAMPLES).iterdir())


def test_a_generator_that_is_not_restored_shows(model: TextToImage, whole: TrainResult, tmp_path: pathlib.Path) -> None:
    """The comparison of the tests above can fail."""
    with pytest.raises(Cancelled):
        run(model, tmp_path, stop=(3, 1))
    state = torch.load(tmp_path / STATE, weights_only=True)
    state["generators"] = [torch.Generator().manual_seed(CONFIG.seed).get_state() for _ in state["generators"]]
    del state["sha256"]
    torch.save(state, tmp_path / STATE)
    assert not same(run(model, tmp_path, resume=True), whole)


@pytest.mark.parametrize("file", [STATE, "bank-*.pt"])
def test_a_flipped_bit_in_the_state_or_the_bank_is_refused_by_name(
    model: TextToImage, tmp_path: pathlib.Path, file: str
) -> None:
    with pytest.raises(Cancelled):
        run(model, tmp_path, stop=(3, 1))
    (path,) = tmp_path.glob(file)
    intact = path.read_bytes()
    tensors = [leaf for leaf in tree_leaves(torch.load(path, weights_only=True)) if isinstance(leaf, torch.Tensor)]
    largest = max(tensors, key=lambda tensor: tensor.unique().numel())
    changed = bytearray(intact)
    changed[intact.index(largest.numpy().tobytes()) + largest.nbytes // 2] ^= 4  # torch reads it without a check
    path.write_bytes(changed)
    with pytest.raises(AdvUnlearnError, match=f"{re.escape(str(path))} is damaged: its SHA-256"):
        run(model, tmp_path, resume=True)
    path.write_bytes(intact)
    run(model, tmp_path, resume=True)


def test_a_new_run_in_a_used_folder_keeps_a_bank_of_its_own(model: TextToImage, tmp_path: pathlib.Path) -> None:
    other = dataclasses.replace(CONFIG, seed=1)
    with pytest.raises(Cancelled):
        run(model, tmp_path, stop=(1, 1), config=other)
    with pytest.raises(Cancelled):
        run(model, tmp_path, stop=(1, 1))
    assert same(run(model, tmp_path, resume=True), run(model))


def test_resume_without_a_state_is_refused(model: TextToImage, tmp_path: pathlib.Path) -> None:
    with pytest.raises(AdvUnlearnError, match="resume needs checkpoints"):
        run(model, resume=True)
    run(model, tmp_path, config=dataclasses.replace(CONFIG, iterations=3))
    with pytest.raises(AdvUnlearnError, match="has already done 3 iterations"):
        run(model, tmp_path, resume=True, config=dataclasses.replace(CONFIG, iterations=2))


def test_an_interrupt_in_the_middle_of_a_write_is_an_interrupt(tmp_path: pathlib.Path) -> None:
    class Interrupted:
        """A file whose third write is met by ctrl-C."""

        def __init__(self, file: Any) -> None:
            self.file, self.writes = file, 0

        def write(self, data: bytes) -> int:
            self.writes += 1
            if self.writes == 3:
                raise KeyboardInterrupt
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with pytest.raises(KeyboardInterrupt):  # torch's writer would say that a position is unexpected
        write_atomic(tmp_path / "state.pt", lambda file: torch.save({"a": torch.zeros(10_000)}, Interrupted(file)))
    assert not (tmp_path / "state.pt").exists()
