"""The time that a user waits for the choice of a micro-batch, in CPU seconds and estimates.

    python benchmarks/estimates.py [--model sd15] [--resolution 512] [--dtype float16]

Prints a line for each card: what is chosen, the estimates that it took, and CPU seconds of this process, which other
work on the machine changes less than the time on the clock. Every line includes the passes of the UNet, which are
measured once for all estimates, and the first one whatever torch imports.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import time

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from advunlearn.config.training import RunConfig
from advunlearn.memory.estimate import Estimator
from advunlearn.memory.fit import CARD_SIZES, fit_same_result
from advunlearn.memory.plan import GIB, Plan
from advunlearn.models.meta_model import skeleton


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--dtype", default="float16")
    args = parser.parse_args()
    device = torch.device("cuda")
    model = skeleton(args.model, device, getattr(torch, args.dtype))
    plan = Plan(run=RunConfig(), resolution=args.resolution, dtype=args.dtype)
    for card in CARD_SIZES:
        measure = functools.cache(Estimator(model, ["a photo of a dog"], device))
        start = time.process_time()
        fit = fit_same_result(measure, plan, card * GIB)
        seconds = time.process_time() - start
        chosen = "nothing fits" if fit is None else f"{fit[0].changes(plan)}, {fit[1].peak / GIB:.1f} GiB"
        print(f"{card} GB: {chosen}; {measure.cache_info().misses} estimates, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
