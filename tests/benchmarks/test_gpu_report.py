"""The GPU's report: its file by hand, and what it says where there is no GPU."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
import torch

from advunlearn.config.training import RunConfig
from benchmarks import gpu
from benchmarks.suites import micro_batches

JUNIT = """<testsuites><testsuite>
<testcase name="test_a[x]" time="1.5"><properties><property name="measured_gib" value="2.25"/></properties></testcase>
<testcase name="test_b" time="0.5"><failure message="assert 1 == 2">...</failure></testcase>
<testcase name="test_c" time="0"><skipped message="needs a CUDA GPU"/></testcase>
</testsuite></testsuites>"""


def test_outcomes_seconds_and_figures_of_tests_are_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(JUNIT)
    assert gpu.read_tests(path) == {
        "test_a[x]": {"outcome": "passed", "seconds": 1.5, "measured_gib": 2.25},
        "test_b": {"outcome": "failure", "seconds": 0.5, "reason": "assert 1 == 2"},
        "test_c": {"outcome": "skipped", "seconds": 0.0, "reason": "needs a CUDA GPU"},
    }


def test_the_limits_are_under_eight_minutes_together() -> None:
    assert sum(gpu.LIMITS.values()) <= 8 * 60


def test_a_part_that_fails_is_recorded_and_the_others_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = {"tests": ["json.tool", "--help"], "suites": ["json.tool", str(tmp_path / "missing.json")]}
    monkeypatch.setattr(gpu, "make_arguments", lambda name, device, xml: commands[name])
    monkeypatch.setattr(gpu, "LIMITS", dict.fromkeys(commands, 60))
    monkeypatch.setattr(gpu.json, "loads", lambda text: {"help": "usage" in text})
    out = tmp_path / "report" / "gpu.json"
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--device", "cpu", "--out", str(out)])
    monkeypatch.undo()
    parts = json.loads(out.read_text())["parts"]
    assert ended.value.code == 1
    assert parts["tests"]["outcome"] == "passed" and parts["tests"]["figures"] == {"help": True}
    assert parts["suites"]["outcome"] == "failed" and "missing.json" in parts["suites"]["output"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, gpu.__file__, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and not out.exists()
    assert "there is no GPU" in done.stderr and "--device cpu" in done.stderr


def test_micro_batches_are_compared_with_the_whole_batch() -> None:
    run = RunConfig.from_dict(
        {
            "train": {"warmup": 0, "iterations": 1, "batch": 1, "retain_batch": 1},
            "attack": {"steps": 1, "restarts": 1},
            "bank": {"trajectories": 2, "retain_trajectories": 2, "sampling_steps": 1},
        }
    )
    rows = micro_batches.measure(2, "cpu", run, (0, 1))["micro_batches"]
    assert rows["0"]["over_whole_batch"] == 1.0
    assert rows["1"]["over_whole_batch"] == pytest.approx(rows["1"]["seconds"] / rows["0"]["seconds"])
