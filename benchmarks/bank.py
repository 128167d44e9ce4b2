"""Trajectory bank against fresh sampling: seconds for an iteration, and what comes out.

    python benchmarks/bank.py [--iterations 100] [--seeds 0 1 2 3 4]

Both run the same settings on the same concept in one process; the ratio is of the medians of an iteration's seconds.
All arithmetic of the frozen parts is in bf16. Writes benchmarks/results/bank.json, a row at a time, and goes on where
it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kept import WHOLE_VOCABULARY, Kept

from advunlearn import miniature
from advunlearn.config import BankConfig, ConceptConfig, EvaluateConfig
from advunlearn.evaluation.cases import retain_prompts
from advunlearn.evaluation.evaluate import Evaluator, Subject
from advunlearn.events import Progress
from advunlearn.fresh import FreshSampler
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models import load
from advunlearn.recipes import RECIPES
from advunlearn.trainer import train
from advunlearn.trajectories import TrajectoryBank, make_banks


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what rows of one file have in common."""
    return {name: getattr(args, name) for name in ("concept", "iterations", "cases", "attack_steps", "eval_seed")}


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return fresh sampling's time over the bank's, of each seed and their median."""
    seconds = {(r["sampling"], r["seed"]): r["seconds"] for r in rows}
    found = [v / seconds["bank", seed] for (name, seed), v in seconds.items() if name == "fresh"]
    return {"fresh_over_bank": statistics.median(found) if found else None, "ratios": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="castle")
    parser.add_argument("--iterations", type=int, default=RECIPES["advunlearn"].train.iterations)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--attack-steps", type=int, default=40)
    parser.add_argument("--eval-seed", type=int, default=4242, help="one that chose no setting")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    concept, recipe = ConceptConfig(concept=args.concept), RECIPES["advunlearn"]
    prompts = retain_prompts(concept)
    budget = EvaluateConfig(
        cases=args.cases, attack_steps=args.attack_steps, attack_every=args.attack_steps, repeats=1, seed=args.eval_seed
    )  # fmt: skip
    evaluator = Evaluator(model, judge, concept, budget, given=WHOLE_VOCABULARY)
    kept = Kept("bank.json", settings_of(args))
    for seed in args.seeds:
        for name, kind in (("bank", TrajectoryBank), ("fresh", FreshSampler)):
            if kept.has(sampling=name, seed=seed):
                continue
            config = replace(recipe.train, seed=seed, iterations=args.iterations)
            bank = BankConfig()
            banks = make_banks(model, concept, prompts, bank, torch.Generator().manual_seed(seed), bank=kind)
            marks = [time.perf_counter()]

            def mark(progress: Progress, marks: list[float] = marks) -> None:
                if progress.phase == "train":
                    marks.append(time.perf_counter())

            result = train(model, concept, recipe.attack, config, bank, prompts, mark, banks)
            attacked = [b - a for a, b in zip(marks, marks[1:], strict=False)][config.warmup :]
            measured = evaluator.measure(Subject(result.encoder, model.denoiser))
            row = {
                "sampling": name, "seed": seed, "seconds": statistics.median(attacked), "asr": measured.asr,
                "utility": measured.utility,
            }  # fmt: skip
            kept.add(row, **ratios([*kept.rows, row]))
            print(json.dumps(row), flush=True)
    print(json.dumps(ratios(kept.rows)))


if __name__ == "__main__":
    main()
