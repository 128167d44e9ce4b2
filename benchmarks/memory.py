"""The estimate of a run's memory against what a run takes on the CPU.

    python benchmarks/memory.py [--only miniature-64]

Each case trains two iterations with random weights in processes of its own and measures three times: the storages that
are alive (the counter of the estimate, on real tensors), what the allocator gave out (torch.profiler), and the
process's resident memory. Kernels take scratch memory that only the latter two see.
Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import pathlib
import subprocess
import sys
import threading
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from advunlearn.config import AttackConfig, BankConfig, TrainConfig
from advunlearn.estimate import estimate
from advunlearn.live import LiveMemory
from advunlearn.models import TextToImage
from advunlearn.plan import Plan
from advunlearn.skeleton import skeleton
from advunlearn.trainer import train

BANK = BankConfig(trajectories=2, retain_trajectories=2, sampling_steps=2)
RETAINED = ["a photo of a dog", "a photo of a cat"]
CPU = torch.device("cpu")
# Model, resolution, dtype, attack restarts, batch, retain batch; all with and without gradient checkpointing.
CASES = {
    "miniature-64": ("miniature", 64, "float32", 4, 8, 12),
    "miniature-64-bf16": ("miniature", 64, "bfloat16", 4, 8, 12),
    "miniature-256": ("miniature", 256, "float32", 2, 2, 2),
    "sd15-128": ("sd15", 128, "float32", 2, 2, 2),
    "sd15-128-batch": ("sd15", 128, "float32", 1, 6, 6),
    "sd15-256": ("sd15", 256, "float32", 1, 2, 2),
}
AGAIN = "-checkpointed"
NAMES = (*CASES, *(case + AGAIN for case in CASES))


def plan_of(case: str) -> Plan:
    """Return a case's settings."""
    _, resolution, dtype, restarts, batch, retain_batch = CASES[case.removesuffix(AGAIN)]
    again = case.endswith(AGAIN)
    config = TrainConfig(iterations=2, warmup=0, batch=batch, retain_batch=retain_batch, checkpointing=again)
    attack = AttackConfig(steps=1, restarts=restarts)
    return Plan(attack=attack, train=config, bank=BANK, resolution=resolution, dtype=dtype)


def model_of(case: str) -> TextToImage:
    """Return a case's model with random weights."""
    name, resolution, dtype, *_ = CASES[case.removesuffix(AGAIN)]
    model = skeleton(name, CPU, getattr(torch, dtype))
    generator = torch.Generator().manual_seed(0)
    for part in (model.text_encoder, model.denoiser.unet, model.vae):  # type: ignore[attr-defined]
        part.to_empty(device=CPU)
        for tensor in part.parameters():
            tensor.data.normal_(0, 0.02, generator=generator)
    for name, buffer in model.text_encoder.named_buffers():
        if name.endswith("position_ids"):
            buffer.data = torch.arange(buffer.shape[-1]).expand(buffer.shape)
    size = resolution // 8
    model.denoiser.latent_shape = (model.denoiser.latent_shape[0], size, size)
    return model


def resident() -> int:
    """Return the process's resident memory in bytes."""
    status = pathlib.Path("/proc/self/status").read_text().split("VmRSS:")[1]
    return int(status.split()[0]) * 1024


def run(case: str) -> None:
    """Train as a user would."""
    plan = plan_of(case)
    train(model_of(case), plan.concept, plan.attack, plan.train, plan.bank, RETAINED)


def by_counter(case: str) -> int:
    """Return the peak of the storages that are alive."""
    with LiveMemory() as live:
        run(case)
    return max(live.peaks.values())


def by_allocator(case: str) -> int:
    """Return the peak of what the allocator gave out."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(case)
    held = peak = 0
    events = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def by_process(case: str) -> int:
    """Return by how much the process's resident memory grew at most."""
    run("miniature-64")  # what the libraries load on their first use is not the run's
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what it freed is given back, or the next run would take it from there
    before, most, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run(case)
    done.set()
    watcher.join()
    return most - before


WAYS = {"counter": by_counter, "allocator": by_allocator, "process": by_process}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, action="append")
    parser.add_argument("--way", choices=WAYS, help="measure the one case once and print the bytes")
    args = parser.parse_args()
    if args.way:
        print(WAYS[args.way](args.only[0]))
        return
    path = ROOT / "benchmarks" / "results" / "memory.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    print(f"{'case':<20}{'predicted':>12}" + "".join(f"{way:>12}{'ratio':>7}" for way in WAYS) + "   (MiB)")
    for case in args.only or NAMES:
        name, _, dtype, *_ = CASES[case.removesuffix(AGAIN)]
        predicted = estimate(skeleton(name, CPU, getattr(torch, dtype)), plan_of(case), RETAINED, CPU).peak
        measured = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--only", case, "--way", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            measured[way] = int(done.stdout.split()[-1])
        rows[case] = {"predicted": predicted, **measured}
        columns = "".join(f"{m / 2**20:>12.0f}{predicted / m:>7.2f}" for m in measured.values())
        print(f"{case:<20}{predicted / 2**20:>12.0f}{columns}", flush=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
