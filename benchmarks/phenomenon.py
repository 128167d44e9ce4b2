"""Attack success and utility of ESD and AdvUnlearn, on the text encoder and on the UNet.

    python benchmarks/phenomenon.py run --concepts castle church
    python benchmarks/phenomenon.py run --concepts castle --models original esd esd_text advunlearn advunlearn_xattn \
        advunlearn_full --attacks unlearndiffatk soft_prefix cce
    python benchmarks/phenomenon.py table [--attacks unlearndiffatk soft_prefix cce] [--models ...]

`run` trains the models that are missing in runs/benchmarks and adds a row for each (concept, seed, model, part) to
benchmarks/results/phenomenon.json; a part is an attack, or the plain prompts with synonyms and utility. It skips rows
that exist, so that it can be stopped and called again. `table` prints Markdown: counts summed over seeds, with minimum
and maximum. UnlearnDiffAtk searches the tokens that can be typed. The frozen parts compute in bf16.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from measured import SETTINGS, find_missing, format_cells, format_titles, make_evaluator, measure, merge_parts
from result_rows import ATTACKS, ResultRows
from trained import MODELS, TITLES, TrainedModels, make_concept

from advunlearn.models.loading import load


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Train and measure what is missing."""
    torch.set_num_threads(1)
    model = load("miniature", dtype=torch.bfloat16)
    for name in args.concepts:
        concept = make_concept(name)
        evaluator = make_evaluator(model, concept)
        for seed in args.seeds:
            models = TrainedModels(model, concept, seed)
            for kind in args.models:
                key = {"concept": name, "seed": seed * (kind != "original"), "model": kind}
                if missing := find_missing(results, key, args.attacks):
                    subject, seconds = models.get(kind)
                    measure(evaluator, subject, results, key | {"training_seconds": seconds}, missing)


def table(args: argparse.Namespace, results: ResultRows) -> str:
    """Return the rows of the chosen concepts and models as Markdown, summed over seeds."""
    attacks = (*list(ATTACKS)[:2], *args.attacks)
    found = merge_parts(results.rows, ("concept", "model", "seed"))
    titles = ["concept", "model", "seeds", *format_titles(attacks)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for concept in args.concepts:
        for kind in args.models:
            models = [model for (c, k, _), model in found.items() if (c, k) == (concept, kind)]
            models = [model for model in models if set(attacks) <= set(model["asr"])]
            if models:
                cells = [concept, TITLES[kind], str(len(models)), *format_cells(models, attacks)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--concepts", nargs="+", default=["castle", "church", "parachute", "sailboat", "noto"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--models", nargs="+", choices=("original", *MODELS), default=["original", "esd_text", "advunlearn"]
    )
    parser.add_argument("--attacks", nargs="+", default=["unlearndiffatk", "soft_prefix"])
    args = parser.parse_args()
    results = ResultRows("phenomenon.json", SETTINGS)
    if args.what == "table":
        print(table(args, results))
    else:
        run(args, results)


if __name__ == "__main__":
    main()
