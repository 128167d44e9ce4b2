"""The command that measures what a run costs."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

import torch

from ..bench import SUITES, suite
from ..errors import AdvUnlearnError
from ..inputs import command_line
from ..models import best_device
from ..recipes import environment
from .common import finish


def bench(args: Namespace) -> None:
    """Run suites; print their figures."""
    if args.repeats < 1:
        raise AdvUnlearnError(f"--repeats is {args.repeats}; it must be at least 1")
    names = SUITES if "all" in args.suite else tuple(dict.fromkeys(args.suite))
    machine = environment() | {"cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    device = torch.device(args.device or best_device())
    machine["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    found = {name: suite(name)(args.repeats, str(device)) for name in names}
    rows = [f"{name}: {key} {value}" for name in names for key, value in flat(found[name]).items()]
    finish(args, {"machine": machine, "command": command_line(), **found}, "\n".join(rows))


def flat(tree: dict[str, Any], path: str = "") -> dict[str, str]:
    """Return figures by their path, rounded; settings are left out."""
    out: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key != "settings":
            out |= flat(value, f"{path}{key} / ")
        elif isinstance(value, int | float):
            out[path + key] = f"{value:.3f}"
    return out
