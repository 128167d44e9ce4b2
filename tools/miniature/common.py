"""What the training scripts share: checkpoints that resume, a log, schedules, averages."""

from __future__ import annotations

import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

torch.set_flush_denormal(True)


def images_of(array: np.ndarray) -> Tensor:
    """Turn (B, H, W, 3) uint8 into (B, 3, H, W) floats in [0, 1]."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Return the learning-rate factor: linear warm-up, then half a cosine down to 1 %."""
    return min(1.0, (step + 1) / warmup) * max(0.01, math.cos(step / steps * math.pi / 2))


@torch.no_grad()
def average_into(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move an exponential moving average of the weights one step, shorter at first."""
    keep = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in model.parameters()], 1 - keep)


class Run:
    """A training run that writes its state every few minutes and goes on from it."""

    def __init__(self, path: pathlib.Path, every: float = 240.0, **parts: Any) -> None:
        self.path, self.every, self.parts, self.first = path, every, parts, 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            for name, part in parts.items():
                part.set_state(state[name]) if isinstance(part, torch.Generator) else part.load_state_dict(state[name])
            self.first = state["step"]
        self.start = time.time()

    def save(self, step: int) -> None:
        """Write the state after `step` steps, atomically."""
        state = {n: p.get_state() if isinstance(p, torch.Generator) else p.state_dict() for n, p in self.parts.items()}
        torch.save({**state, "step": step}, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def steps(self, total: int) -> Iterator[int]:
        """Yield the steps still to do."""
        saved = time.time()
        for step in range(self.first, total):
            yield step
            if time.time() - saved > self.every or step + 1 == total:
                self.save(step + 1)
                saved = time.time()

    def log(self, step: int, **values: Any) -> None:
        """Append one line to the run's log and print it."""
        row = {"step": step + 1, "minutes": round((time.time() - self.start) / 60, 2), **values}
        with self.path.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
