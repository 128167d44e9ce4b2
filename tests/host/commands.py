"""The library's commands next to a host, and what of both is compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from .graphs import Graph
from .server import PACK

NODE_ONLY = {"resolution", "save_name", "resume", "retain_prompts", "sample_every"}


def start_command(name: str, *words: str, **flags: Any) -> subprocess.Popen[str]:
    """Start a command of the library in a process of its own, next to the host's."""
    named = {key.replace("_", "-"): value for key, value in flags.items()}
    options = [word for k, v in named.items() if not isinstance(v, bool) for word in (f"--{k}", str(v))]
    options += [f"--{k}" if v else f"--no-{k}" for k, v in named.items() if isinstance(v, bool)]
    line = [sys.executable, "-m", "advunlearn", name, *words, *options, "--device", "cpu", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, cwd=PACK, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish_command(process: subprocess.Popen[str], timeout: float = 900) -> dict[str, Any]:
    """Wait for a command and return its JSON."""
    stdout, stderr = process.communicate(timeout=timeout)
    assert process.returncode == 0, stderr[-2000:]
    return json.loads(stdout)


def list_flags(graph: Graph) -> dict[str, Any]:
    """Return the flags that stand for the inputs of a graph's training node and of its settings nodes."""
    flags = {}
    for node_name, prefix in {"train": "", "training": "", "attack": "attack_", "bank": "bank_"}.items():
        inputs = graph[node_name]["inputs"].items()
        flags |= {prefix + k: v for k, v in inputs if not isinstance(v, list) and k not in NODE_ONLY}
    return flags


def counts(row: dict[str, Any]) -> dict[str, int]:
    """Return the judge's counts of one model."""
    success = {name: count["success"] for name, count in row["asr"].items()}
    return success | {name: c["correct"] for name, c in row["utility"].items() if isinstance(c, dict)}
