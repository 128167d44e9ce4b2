"""Everything that needs a GPU, in one JSON file: figures, tests and environment.

    benchmarks/gpu.sh [--out runs/gpu.json] [--device cpu]

Runs tests/gpu, the suites of `python -m benchmarks`, and the host's tests on a GPU if COMFYUI_PATH is set. A part that
fails or takes longer than its limit is recorded as such, and the others run. The exit code is 1 if any did.
`--device cpu` tries the parts where there is no GPU; its figures say nothing about one.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.__main__ import describe_machine

# Limits in seconds: 8 minutes together.
LIMITS = {"tests": 180, "suites": 180, "host": 120}
SUITES = ("micro_batches", "iteration", "bank", "scale")
CPU_SUITES = ("micro_batches", "bank")  # the others take minutes on a CPU


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs" / "gpu.json", help="the file to write")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"there is no GPU: torch {torch.__version__} finds no CUDA device here, so nothing was measured; run this "
            "on a machine with one, or try the parts with --device cpu"
        )
    began = time.perf_counter()
    parts = {name: run_part(name, args.device) for name in LIMITS if name != "host" or os.environ.get("COMFYUI_PATH")}
    report = {"machine": describe_machine(args.device), "seconds": time.perf_counter() - began, "parts": parts}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    failed = [name for name, part in parts.items() if part["outcome"] != "passed"]
    print(f"wrote {args.out} in {report['seconds']:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


def run_part(name: str, device: str) -> dict[str, Any]:
    """Run one part in a process of its own; return its outcome, its seconds and its figures."""
    print(f"{name}: at most {LIMITS[name]} s", flush=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        xml = pathlib.Path(folder) / "tests.xml"
        command = [sys.executable, "-m", *make_arguments(name, device, xml)]
        environment = {**os.environ, "ADVUNLEARN_TEST_DEVICE": device, "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMITS[name]
            )
        except subprocess.TimeoutExpired:
            return {"outcome": f"not finished in {LIMITS[name]} s", "command": command[1:]}
        part = {"outcome": "failed" if done.returncode else "passed", "command": command[1:]}
        part["seconds"] = time.perf_counter() - began
        if done.returncode:
            part["output"] = (done.stdout + done.stderr)[-4000:]
        if xml.is_file():
            part["tests"] = read_tests(xml)
        elif not done.returncode:
            part["figures"] = json.loads(done.stdout)
    return part


def make_arguments(name: str, device: str, xml: pathlib.Path) -> list[str]:
    """Return the module of a part and its arguments."""
    if name == "suites":
        suites = SUITES if device == "cuda" else CPU_SUITES
        return ["benchmarks", "--suite", *suites, "--repeats", "1", "--device", device, "--json"]
    folder = "tests/gpu" if name == "tests" else "tests/host/test_gpu.py"
    return ["pytest", folder, "-q", "--tb=short", f"--junitxml={xml}", "-o", "junit_family=xunit1"]


def read_tests(xml: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Return the outcome, the seconds and the recorded figures of each test in a JUnit file."""
    tests = {}
    for case in ElementTree.parse(xml).iter("testcase"):
        outcomes = [child for child in case if child.tag in ("failure", "error", "skipped")]
        row: dict[str, Any] = {
            "outcome": outcomes[0].tag if outcomes else "passed",
            "seconds": float(case.get("time", 0)),
        }
        if outcomes:
            row["reason"] = outcomes[0].get("message", "")
        row |= {entry.get("name", ""): float(entry.get("value", "nan")) for entry in case.iter("property")}
        tests[case.get("name", "")] = row
    return tests


if __name__ == "__main__":
    main()
