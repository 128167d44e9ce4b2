"""Accidents of a run: two in one folder, a full disk, too little memory, a folder that is deleted."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from encoder_layouts import is_same
from safetensors.torch import load_file

from advunlearn.cli import main as command_line
from advunlearn.cli.folder_lock import LOCK, lock_folder
from advunlearn.cli.main import main
from advunlearn.cli.run_folder import RunFolder
from advunlearn.errors import AdvUnlearnError
from advunlearn.files import STATE, write_atomic

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = "train --iterations 3 --warmup 1 --batch 2 --retain-batch 2 --attack-steps 1 --attack-restarts 1 --device cpu "
TRAIN += "--bank-trajectories 4 --bank-retain-trajectories 4 --bank-sampling-steps 2 --sample-every 0 --model"
HOLD = """
import pathlib, sys
from advunlearn.cli.folder_lock import lock_folder
with lock_folder(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of the test's folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_run_with_the_same_folder_is_refused_and_the_owner_is_named(
    owner: subprocess.Popen[str], tiny_folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    evaluate = ["evaluate", "--cases", "1", "--attacks", "random_prefix", "--sampling-steps", "1"]
    for command in ([*TRAIN.split(), str(tiny_folder)], evaluate, ["attack", *evaluate[1:3]], ["demo"]):
        assert main([*command, "--concept", "church", "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path} is in use by process {owner.pid} on " in error and "give another --out" in error
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_the_lock_of_a_killed_process_is_taken_over_and_removed(
    owner: subprocess.Popen[str], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(AdvUnlearnError, match=f"in use by process {owner.pid}"), lock_folder(tmp_path):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == owner.pid  # it is still there
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(AdvUnlearnError, match=f"in use by process {os.getpid()}"), lock_folder(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()


FULL = """
import resource, signal, sys
from advunlearn.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of files")
def test_a_disk_that_is_full_is_one_line(tiny_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", FULL, *TRAIN.split(), str(tiny_folder), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith("advunlearn train: [Errno 27] File too large: ") and last.endswith(".pt'")


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path: pathlib.Path) -> None:
    write_atomic(tmp_path / "a.pt", b"earlier")

    def fail(file: Any) -> None:
        file.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*a.pt'"):
        write_atomic(tmp_path / "a.pt", fail)
    assert (tmp_path / "a.pt").read_bytes() == b"earlier"


def test_too_little_memory_of_the_computer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def allocate(args: Namespace) -> None:
        torch.empty(1 << 58)

    monkeypatch.setattr(command_line, "run_command", allocate)
    assert main(["info", "a"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("advunlearn info: the device has too little memory (") and error.count("\n") == 1

    def fail(args: Namespace) -> None:
        raise RuntimeError("another error")

    monkeypatch.setattr(command_line, "run_command", fail)
    with pytest.raises(RuntimeError, match="another error"):
        main(["info", "a"])


def test_a_folder_that_is_deleted_during_a_run_is_said_and_the_state_is_saved(
    tiny_folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [*TRAIN.split(), str(tiny_folder), "--concept", "church"]
    assert main([*command, "--out", str(whole)]) == 0
    call = RunFolder.__call__

    def delete(self: RunFolder, progress: Any) -> None:
        call(self, progress)
        if progress.phase == "train" and progress.iteration == 1:
            shutil.rmtree(self.folder)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "__call__", delete)
        assert main([*command, "--out", str(cut)]) == 2
    assert f"{cut} was deleted during the run; the run's state is saved there again" in capsys.readouterr().err
    assert (cut / STATE).is_file()
    assert main([*command, "--out", str(cut), "--resume"]) == 0
    assert is_same(*(load_file(folder / "encoder.safetensors") for folder in (whole, cut)))
