"""Measure the cost of a training run on this machine.

    python -m benchmarks [--suite iteration bank memory scale micro_batches] [--repeats 3] [--device cpu] [--json]

README.md explains each figure.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from advunlearn.models.placement import best_device
from advunlearn.training.recipe import environment

from .suites import SUITES


def main(argv: Sequence[str] | None = None) -> None:
    """Run suites and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", choices=(*SUITES, "all"), default=["iteration"], help="what to measure")
    parser.add_argument("--device", default="", help="cuda, mps or cpu (default: the first available)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each measurement (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats is {args.repeats}; it must be at least 1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    device = args.device or best_device()
    results = {}
    for name in SUITES if "all" in args.suite else dict.fromkeys(args.suite):
        start = time.perf_counter()
        results[name] = SUITES[name](args.repeats, device)
        results[name]["suite_seconds"] = time.perf_counter() - start
    if args.json:
        command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if argv is None else argv)])
        print(json.dumps({"machine": describe_machine(device), "command": command, **results}))
    else:
        print(
            "\n".join(f"{suite}: {key} {value}" for suite in results for key, value in flatten(results[suite]).items())
        )


def describe_machine(device: str) -> dict[str, str]:
    """Return the versions and the hardware that the figures depend on."""
    return environment() | {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def processor() -> str:
    """Return the name of the CPU, or its architecture if the system does not tell the name."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def flatten(tree: dict[str, Any], path: str = "") -> dict[str, str]:
    """Return rounded figures by their path, without the settings."""
    out: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key != "settings":
            out |= flatten(value, f"{path}{key} / ")
        elif isinstance(value, int | float):
            out[path + key] = f"{value:.3f}"
    return out


if __name__ == "__main__":
    main()
