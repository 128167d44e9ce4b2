"""An iteration in micro-batches: its time and memory compared with the whole batch, at the default batch sizes.

On a GPU the model has the shape of Stable Diffusion 1.5 with random weights, at 512 pixels in float16; on a CPU, where
that would take hours, it is the miniature.
"""

from __future__ import annotations

from typing import Any

import torch

from advunlearn.config.training import RunConfig
from advunlearn.memory.plan import GIB, PUBLISHED_RESOLUTION
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.placement import best_device
from advunlearn.training.bank import Banks, make_banks
from advunlearn.training.events import Progress
from advunlearn.training.trainer import Trainer

from .clock import now
from .memory import RETAINED, random_model

SIZES = (0, 13, 8, 4, 1)  # 0: the whole batch; then what fits on cards with 16, 12, 8 and 6 GB
RUN = RunConfig.from_dict(
    {
        "train": {"warmup": 0, "iterations": 1},
        "attack": {"steps": 4},
        "bank": {"trajectories": 4, "retain_trajectories": 4, "sampling_steps": 2},
    }
)


def measure(repeats: int = 3, device: str = "", run: RunConfig = RUN, sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """Measure the suite.

    Args:
        repeats: iterations of each size; one more is not counted.
        device: the device; empty for the first available.
        run: the settings.
        sizes: the micro-batches, the whole batch (0) first.

    Returns:
        For each size `seconds`, the fastest iteration with its attack; `over_whole_batch`, that divided by the whole
        batch's; on a GPU `peak_gib`, the allocator's.
    """
    place = torch.device(device or best_device())
    cuda = place.type == "cuda"
    model = random_model("sd15", PUBLISHED_RESOLUTION, torch.float16, place) if cuda else load("miniature", place)
    banks = make_banks(model, run, RETAINED, torch.Generator().manual_seed(0))
    rows: dict[str, dict[str, float]] = {}
    for size in sizes:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = min(time_iterations(model, run.replace(train={"micro_batch": size}), banks, repeats))
        whole = rows["0"]["seconds"] if rows else seconds
        rows[str(size)] = {"seconds": seconds, "over_whole_batch": seconds / whole}
        if cuda:
            rows[str(size)]["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    return {"micro_batches": rows, "settings": {"model": model.name, "run": run.to_dict(), "repeats": repeats}}


def time_iterations(model: TextToImage, run: RunConfig, banks: Banks, count: int) -> list[float]:
    """Run the trainer; return the seconds of `count` iterations, without the first, which also allocates."""
    run = run.replace(train={"iterations": count + 1})
    trainer = Trainer(model, run, banks, RETAINED, torch.Generator().manual_seed(0))
    times = []

    def on_progress(progress: Progress) -> None:
        if progress.phase == "train":
            times.append(now(model.denoiser.device))

    trainer.run(on_progress)
    return [end - start for start, end in zip(times, times[1:], strict=False)]
