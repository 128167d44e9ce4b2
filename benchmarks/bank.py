"""Trajectory banks of several sizes against new samples: seconds per iteration, and the resulting robustness.

    python benchmarks/bank.py run [--ways bank fresh quarter ...] [--seeds 0 1 2 3 4]
    python benchmarks/bank.py table

All use the same settings and the same concept. `seconds` is the median over the iterations of a row; only rows measured
by one call can be compared. The frozen parts compute in bf16. `run` writes benchmarks/results/bank.json row by row and
resumes where it was interrupted; `table` prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from result_rows import ATTACKS, WHOLE_VOCABULARY, ResultRows, summed

from advunlearn import miniature
from advunlearn.cli.commands.demo import RECIPES
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.training import BankConfig, RunConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature.captions import retain_prompts
from advunlearn.models.loading import load
from advunlearn.training.bank import TrajectoryBank, make_banks
from advunlearn.training.events import Progress
from advunlearn.training.official import FreshSampler
from advunlearn.training.trainer import train

FULL = BankConfig()
SMALL = replace(FULL, trajectories=FULL.trajectories // 16, retain_trajectories=FULL.retain_trajectories // 16)
# A way to sample, and the bank's settings.
WAYS: dict[str, tuple[type[TrajectoryBank], BankConfig]] = {
    "bank": (TrajectoryBank, FULL),
    "fresh": (FreshSampler, FULL),
    "float32": (TrajectoryBank, replace(FULL, dtype="float32")),
    "quarter": (
        TrajectoryBank,
        replace(FULL, trajectories=FULL.trajectories // 4, retain_trajectories=FULL.retain_trajectories // 4),
    ),
    "sixteenth": (TrajectoryBank, SMALL),
    "sixteenth, 5 steps": (TrajectoryBank, replace(SMALL, sampling_steps=5)),
    "renewed at 4 draws": (TrajectoryBank, replace(FULL, draws_per_sample=4.0)),
}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that all rows of a file share."""
    return {name: getattr(args, name) for name in ("concept", "iterations", "cases", "attack_steps", "eval_seed")}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return Markdown: counts summed over seeds, minimum and maximum in brackets."""
    lines = [f"| way | seeds | {' | '.join(ATTACKS.values())} | retained | its style | feature distance |"]
    lines.append("|---" * (5 + len(ATTACKS)) + "|")
    for way in WAYS:
        own = [row for row in rows if row["way"] == way]
        if own:
            counts = [[row["asr"][attack] for row in own] for attack in ATTACKS]
            utility = [[row["utility"][name] for row in own] for name in ("retained_accuracy", "style_accuracy")]
            cells = [summed(c, "success") for c in counts] + [summed(c, "correct") for c in utility]
            away = [row["utility"]["feature_distance"] for row in own]
            cells.append(f"{statistics.mean(away):.1f} ({min(away):.1f} to {max(away):.1f})")
            lines.append(f"| {way} | {len(own)} | {' | '.join(cells)} |")
    groups = [[row for row in rows if row["way"] == way] for way in ("bank", "fresh")]
    if all(groups):
        found = {attack: [[row["asr"][attack]["success"] for row in group] for group in groups] for attack in ATTACKS}
        chances = ", ".join(f"{by_chance(*found[attack]):.0%} {title}" for attack, title in ATTACKS.items())
        lines.append(f"\nBank and fresh as far apart by chance (exact permutation test, two-sided): {chances}.")
    seconds = {(row["way"], row["seed"]): row["seconds"] for row in rows}
    slower = [v / seconds["bank", seed] for (way, seed), v in seconds.items() if way == "fresh"]
    if slower:
        lines.append(
            f"\nAn iteration on fresh samples takes {statistics.median(slower):.2f} times as long as on the bank "
            f"(median; {min(slower):.2f} to {max(slower):.2f})."
        )
    return "\n".join(lines)


def by_chance(a: Sequence[int], b: Sequence[int]) -> float:
    """Return the p-value of a permutation test: the fraction of splits whose means differ at least as much."""
    both = [*a, *b]

    def apart(chosen: Sequence[int]) -> float:
        inside = sum(both[i] for i in chosen)
        return abs(inside / len(a) - (sum(both) - inside) / len(b))

    splits = [apart(chosen) for chosen in itertools.combinations(range(len(both)), len(a))]
    return sum(split >= apart(range(len(a))) - 1e-9 for split in splits) / len(splits)


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Train and measure the missing rows."""
    torch.set_num_threads(args.threads)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    concept, recipe = ConceptConfig(concept=args.concept), RECIPES["advunlearn"]
    prompts = retain_prompts(concept.names, concept.kind)
    budget = EvaluateConfig(
        cases=args.cases,
        attack_steps=args.attack_steps,
        judge_interval=args.attack_steps,
        repeats=1,
        seed=args.eval_seed,
    )
    evaluator = Evaluator(model, judge, concept, budget, EvaluationInputs(attack_settings=WHOLE_VOCABULARY))
    for seed in args.seeds:
        for way in args.ways:
            if results.has(way=way, seed=seed):
                continue
            kind, bank = WAYS[way]
            config = replace(recipe.train, seed=seed, iterations=args.iterations)
            banks = make_banks(
                model, RunConfig(concept=concept, bank=bank), prompts, torch.Generator().manual_seed(seed), make=kind
            )
            marks = [time.perf_counter()]

            def mark(progress: Progress, marks: list[float] = marks) -> None:
                if progress.phase == "train":
                    marks.append(time.perf_counter())

            result = train(
                model,
                RunConfig(concept=concept, attack=recipe.attack, train=config, bank=bank),
                prompts,
                callback=mark,
                banks=banks,
            )
            attacked = [b - a for a, b in zip(marks, marks[1:], strict=False)][config.warmup :]
            measured = evaluator.measure(Subject(result.encoder, model.denoiser))
            row = {
                "way": way,
                "seed": seed,
                "seconds": statistics.median(attacked),
                "bank": bank.to_dict(),
                "asr": measured.asr,
                "utility": measured.utility,
            }
            results.add(row)
            print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--concept", default="castle")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--attack-steps", type=int, default=40)
    parser.add_argument("--eval-seed", type=int, default=4242, help="one that chose no setting")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--file", default="bank.json", help="in benchmarks/results")
    args = parser.parse_args()
    results = ResultRows(args.file, settings_of(args))
    if args.command == "run":
        run(args, results)
    print(table(results.rows))


if __name__ == "__main__":
    main()
