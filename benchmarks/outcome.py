"""The results of a training run, part by part, to compare two runs bit for bit."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import torch
from safetensors import safe_open

from advunlearn.cli.run_folder import LOG, LOSS, SAMPLES
from advunlearn.files import DONE, STATE

State = dict[str, Any]


def load_state(folder: pathlib.Path) -> State | None:
    """Return the state in a folder; None if there is none."""
    path = folder / STATE
    return torch.load(path, weights_only=True) if path.exists() else None


def digest(value: Any) -> str:
    """Return the SHA-256 of nested tensors and plain values."""
    total = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            total.update(f"{item.dtype}{tuple(item.shape)}".encode() + item.contiguous().numpy().tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                total.update(str(key).encode())
                add(item[key])
        elif isinstance(item, list | tuple):
            for inner in item:
                add(inner)
        else:
            total.update(repr(item).encode())

    add(value)
    return total.hexdigest()


def outcome(folder: pathlib.Path) -> dict[str, str]:
    """Return a digest of each part of a run folder, without times and places."""
    state = load_state(folder)
    assert state is not None
    with safe_open(folder / "encoder.safetensors", "pt") as file:
        weights, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    done = json.loads((folder / DONE).read_text())
    parts = {
        "weights": weights,
        "metadata": metadata,
        "losses": [done["losses"], done["config"], state["history"]],
        "log": [{k: v for k, v in row.items() if k != "seconds"} for row in rows],
        "loss picture": (folder / LOSS).read_text(),
        "samples": {p.name: p.read_bytes() for p in (folder / SAMPLES).iterdir()},
        "optimiser": state["adam"],
        "parameters": state["parameters"],
        "generators": state["generators"],
        "counters": state["counters"],
        "bank": torch.load(folder / state["bank"], weights_only=True),
        "files": sorted(p.name for p in folder.iterdir() if not p.name.startswith("bank-")),
    }
    return {name: digest(part) for name, part in parts.items()}


def differing(folder: pathlib.Path, whole: dict[str, str]) -> list[str]:
    """Return the parts that differ from the undisturbed run."""
    return [name for name, value in outcome(folder).items() if value != whole[name]]
