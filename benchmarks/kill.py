"""Kill a short run at random moments (SIGKILL), resume it, and compare it bit for bit with an undisturbed run.

    python benchmarks/kill.py [--trials 20] [--seed 0]

Half of the moments are drawn over the whole run; the others are the next write, after such a moment, of the state, of
its bank, or of any file. The comparison covers the encoder and its metadata, the log, the losses, the images, and the
last state: optimiser, generator, banks. Controls resume from a state that lacks one part, and must end differently. The
processes are forked from a server that has only imported the libraries. Writes benchmarks/results/kill.json row by row
and resumes where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch
from outcome import State, differing, load_state, outcome

from advunlearn.cli.config_file import NAME as CONFIG
from advunlearn.cli.main import main as advunlearn
from advunlearn.cli.run_folder import LOG
from advunlearn.files import PARTIAL, STATE

FLAGS = (
    "--iterations 12 --warmup 2 --batch 4 --retain-batch 2 --attack-steps 2 --attack-restarts 2 --bank-trajectories 4 "
    "--bank-retain-trajectories 4 --bank-sampling-steps 4 --bank-draws-per-sample 0.5 "
    "--checkpoint-every 2 --sample-every 5 --device cpu"
)
PRELOAD = [
    "advunlearn.cli.commands.train",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_tiny",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.schedulers.scheduling_ddim",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
]
AIMS = (None, "", None, "state", None, "bank")  # moments of a kill: any, or a write of a file with such a name


def quietly(argv: list[str]) -> None:
    """Run the command line in this process, without output."""
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        os._exit(advunlearn(argv))  # without clean-up, so that the process ends when the command returns


CONTEXT = multiprocessing.get_context("forkserver")


def start(folder: pathlib.Path, resume: bool = False) -> Any:
    """Start the run in another process."""
    how = ["--resume"] if resume else FLAGS.split()
    process = CONTEXT.Process(target=quietly, args=(["train", "--out", str(folder), *how],))
    process.start()
    return process


def finish(folder: pathlib.Path, resume: bool) -> None:
    """Run to the end."""
    process = start(folder, resume)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the run in {folder} ended with {process.exitcode}")


def watch(process: Any, until: Callable[[], bool]) -> bool:
    """Wait for a condition; return False if the process ended first."""
    while process.is_alive():
        if until():
            return True
        time.sleep(0.0005)
    return False


def writing(folder: pathlib.Path, start: str) -> bool:
    """Return whether a file is being written whose name starts with `start`."""
    return any(n.startswith(start) and n.endswith(PARTIAL) for _, _, names in os.walk(folder) for n in names)


def kill_at(folder: pathlib.Path, delay: float, aim: str | None) -> bool:
    """Start a run and kill it `delay` seconds after its first file, or at the next write; False if it ended first.

    `aim` is the start of the name of the file that is being written; None for any moment.
    """
    process = start(folder)
    watch(process, (folder / CONFIG).exists)
    end = time.perf_counter() + delay
    alive = watch(process, lambda: time.perf_counter() >= end and (aim is None or writing(folder, aim)))
    process.kill()
    process.join()
    return alive and process.exitcode == -9


def trial(folder: pathlib.Path, delay: float, aim: str | None, whole: dict[str, str]) -> dict[str, Any] | None:
    """Kill a run, resume it, and compare; return None if it ended before it was killed."""
    if not kill_at(folder, delay, aim):
        return None
    state, log = load_state(folder), folder / LOG
    row = {
        "seconds": round(delay, 3),
        "aimed_at": "any moment" if aim is None else f"a write of {aim or 'anything'}",
        "half_written": sorted(str(p.relative_to(folder)) for p in folder.rglob("*" + PARTIAL)),
        "logged": len(log.read_text().splitlines()) if log.exists() else 0,
        "saved": len(state["history"]) if state else None,
    }
    finish(folder, state is not None)
    different = differing(folder, whole)
    return row | {"different": different, "identical": not different}


def fresh_generators(state: State) -> None:
    generator = torch.Generator().manual_seed(state["settings"]["train"]["seed"])
    state["generators"] = [generator.get_state() for _ in state["generators"]]


def fresh_moments(state: State) -> None:
    for moments in state["adam"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name].zero_()


def fresh_counters(state: State) -> None:
    for counters in state["counters"].values():
        counters["draws"] = 0


CONTROLS: dict[str, Callable[[State], None]] = {
    "new generator": fresh_generators,
    "new moments of Adam": fresh_moments,
    "new draw counters of the banks": fresh_counters,
}


def controls(folder: pathlib.Path, whole: dict[str, str]) -> list[dict[str, Any]]:
    """Resume an intact state, which must end the same, and states that lack a part, which must not."""
    cut = folder / "cut"
    process = start(cut)
    watch(process, lambda: (cut / LOG).exists() and len((cut / LOG).read_text().splitlines()) >= 5)
    process.kill()
    process.join()
    rows = []
    for name, damage in {"as it is": lambda state: None, **CONTROLS}.items():
        copy = folder / name.replace(" ", "-")
        shutil.copytree(cut, copy)
        state = load_state(copy)
        assert state is not None
        damage(state)
        state.pop("sha256")  # otherwise the run is refused as damaged
        torch.save(state, copy / STATE)
        finish(copy, resume=True)
        rows.append({"state": name, "saved": len(state["history"]), "different": differing(copy, whole)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def report(rows: list[dict[str, Any]], checked: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of the result file."""
    return {
        "command": " ".join(["benchmarks/kill.py", *sys.argv[1:]]),
        "flags": FLAGS,
        "identical": sum(row["identical"] for row in rows),
        "trials": len(rows),
        "while_writing": sum(bool(row["half_written"]) for row in rows),
        "rows": rows,
        "controls": checked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    CONTEXT.set_forkserver_preload(PRELOAD)
    out = ROOT / "benchmarks" / "results" / "kill.json"
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"] if out.is_file() else []
    draw = random.Random(f"{args.seed} {len(rows)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        process = start(folder / "whole")
        watch(process, (folder / "whole" / CONFIG).exists)
        begin = time.perf_counter()
        process.join()
        length = time.perf_counter() - begin
        whole = outcome(folder / "whole")
        finish(folder / "again", resume=False)
        assert not differing(folder / "again", whole), "two runs that were left alone differ: nothing can be said"
        shutil.rmtree(folder / "again")
        while len(rows) < args.trials:
            place = folder / "killed"
            aim = AIMS[len(rows) % len(AIMS)]
            row = trial(place, draw.uniform(0, length), aim, whole)
            if row:
                rows.append(row)
                out.write_text(json.dumps(report(rows, []), indent=1) + "\n")
                print(json.dumps(row), flush=True)
            elif aim is None:
                length *= 0.95  # the machine has become quicker
            shutil.rmtree(place)
        checked = controls(folder, whole)
    done = report(rows, checked)
    out.write_text(json.dumps(done, indent=1) + "\n")
    print(json.dumps({k: v for k, v in done.items() if k not in ("rows", "controls", "flags")}))
    if done["identical"] < len(rows) or checked[0]["different"] or not all(row["different"] for row in checked[1:]):
        sys.exit("a run that went on ended otherwise, or a control did not")


if __name__ == "__main__":
    main()
