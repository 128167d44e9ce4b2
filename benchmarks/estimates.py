"""What `--memory auto` chooses for each card, and the time that a user waits for it.

    python benchmarks/estimates.py
    python benchmarks/estimates.py --model sdxl --resolution 1024 --dtype bfloat16 --encoders clip_l clip_g both

Prints a line for each card: the settings that differ from the defaults, the memory, the estimates that were made for
it, and CPU seconds of this process, which other work on the machine changes less than the time on the clock. What was
estimated for a line is not estimated again for the next ones.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from typing import get_args

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from advunlearn.config.training import Encoders, RunConfig, TrainConfig
from advunlearn.memory.estimate import Estimator
from advunlearn.memory.fit import CARD_SIZES, Fit, fit_same_result
from advunlearn.memory.plan import GIB, Plan
from advunlearn.models.meta_model import skeleton


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--encoders", nargs="+", default=["both"], choices=get_args(Encoders))
    args = parser.parse_args()
    device = torch.device("cuda")
    estimator = Estimator(skeleton(args.model, device, getattr(torch, args.dtype)), ["a photo of a dog"], device)
    for encoders in args.encoders:
        run = RunConfig(train=TrainConfig(encoders=encoders))
        plan = Plan(run=run, resolution=args.resolution, dtype=args.dtype)
        for card in CARD_SIZES:
            start, before = time.process_time(), len(estimator.estimates)
            fit = fit_same_result(estimator, plan, card * GIB)
            seconds, count = time.process_time() - start, len(estimator.estimates) - before
            print(f"{encoders}, {card} GB: {describe(plan, fit)}; {count} estimates, {seconds:.1f} s", flush=True)


def describe(plan: Plan, fit: Fit | None) -> str:
    if fit is None:
        return "nothing with the same result fits"
    chosen, estimate = fit
    sizes = {"peak": estimate.peak, "between iterations": estimate.steady, "offloaded": estimate.offloaded}
    return f"{chosen.changes(plan)}, " + ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in sizes.items())


if __name__ == "__main__":
    main()
