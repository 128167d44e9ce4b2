"""The command that measures what a run costs."""

from __future__ import annotations

import os
import pathlib
import platform
import time
from argparse import Namespace
from typing import Any

import torch

from ...bench import SUITES, suite
from ...errors import AdvUnlearnError
from ...models.loading import best_device
from ...training.recipe import environment
from ..inputs import command_line
from .common import finish


def bench(args: Namespace) -> None:
    """Run suites; print their figures."""
    if args.repeats < 1:
        raise AdvUnlearnError(f"--repeats is {args.repeats}; it must be at least 1")
    names = SUITES if "all" in args.suite else tuple(dict.fromkeys(args.suite))
    machine = environment() | {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    device = torch.device(args.device or best_device())
    machine["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    found = {}
    for name in names:
        began = time.perf_counter()
        found[name] = suite(name)(args.repeats, str(device))
        found[name]["suite_seconds"] = time.perf_counter() - began
    rows = [f"{name}: {key} {value}" for name in names for key, value in flat(found[name]).items()]
    finish(args, {"machine": machine, "command": command_line(), **found}, "\n".join(rows))


def processor() -> str:
    """Return the name of the CPU, or of its architecture where the system does not tell."""
    known = pathlib.Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def flat(tree: dict[str, Any], path: str = "") -> dict[str, str]:
    """Return figures by their path, rounded; settings are left out."""
    out: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key != "settings":
            out |= flat(value, f"{path}{key} / ")
        elif isinstance(value, int | float):
            out[path + key] = f"{value:.3f}"
    return out
