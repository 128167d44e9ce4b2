"""The memory estimate of a run compared with its memory on the CPU.

    python benchmarks/memory.py [--only miniature-64]

Each case trains two iterations with random weights, in processes of its own, and is measured in three ways: live
storages (the counter of the estimate, on real tensors), bytes given out by the allocator (torch.profiler), and resident
memory of the process. Only the latter two include the scratch memory of kernels.
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
from dataclasses import replace
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from advunlearn.memory.fake_tensors import LiveMemory
from benchmarks.suites.memory import Case, by_allocator

# Model, resolution, dtype, attack restarts, batch, retain batch; all with and without gradient checkpointing.
CASES = {
    "miniature-64": Case("miniature", 64, "float32", 4, 8, 12),
    "miniature-64-bf16": Case("miniature", 64, "bfloat16", 4, 8, 12),
    "miniature-256": Case("miniature", 256, "float32", 2, 2, 2),
    "sd15-128": Case("sd15", 128, "float32", 2, 2, 2),
    "sd15-128-batch": Case("sd15", 128, "float32", 1, 6, 6),
    "sd15-256": Case("sd15", 256, "float32", 1, 2, 2),
    "sd15-64-bf16": Case("sd15", 64, "bfloat16", 1, 4, 4),
}
MICRO = {"miniature-64-micro": replace(CASES["miniature-64"], micro_batch=2)}
MICRO["sd15-128-micro"] = replace(CASES["sd15-128-batch"], micro_batch=2)
MICRO["sd15-64-bf16-micro"] = replace(CASES["sd15-64-bf16"], micro_batch=1)
CASES |= {f"{name}-checkpointed": replace(case, checkpointing=True) for name, case in CASES.items()} | MICRO


def resident() -> int:
    """Return the resident memory of the process in bytes."""
    status = pathlib.Path("/proc/self/status").read_text().split("VmRSS:")[1]
    return int(status.split()[0]) * 1024


def by_counter(case: str) -> int:
    """Return the peak of the live storages."""
    with LiveMemory() as live:
        CASES[case].run()
    return max(live.peaks.values())


def by_process(case: str) -> int:
    """Return the maximum growth of the resident memory of the process."""
    CASES["miniature-64"].run()  # loads what the libraries load on their first use
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory is returned, or the next run would reuse it
    before, most, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    CASES[case].run()
    done.set()
    watcher.join()
    return most - before


WAYS = {"counter": by_counter, "allocator": lambda case: by_allocator(CASES[case].run), "process": by_process}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--way", choices=WAYS, help="measure the one case once and print the bytes")
    args = parser.parse_args()
    if args.way:
        print(WAYS[args.way](args.only[0]))
        return
    path = ROOT / "benchmarks" / "results" / "memory.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    print(f"{'case':<20}{'predicted':>12}" + "".join(f"{way:>12}{'ratio':>7}" for way in WAYS) + "   (MiB)")
    for case in args.only or CASES:
        predicted = CASES[case].predicted()
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
