"""Erasing a style: more clean prompts among the samples, and more subjects.

    python benchmarks/styles.py run --styles noto --ways clean wide_clean
    python benchmarks/styles.py table

`clean` has half of the samples with the clean prompt after warm-up, the recipe a quarter; `wide` has all 64 objects of
the miniature as subjects, the recipe the 16 general ones. `run` trains the models that are missing in runs/benchmarks
and adds a row for each (concept, seed, model, part) to benchmarks/results/styles.json; it skips rows that exist.
`table` prints Markdown: counts summed over seeds, with minimum and maximum, after those of the recipes from
phenomenon.json. The frozen parts compute in bf16.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from dataclasses import dataclass

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from measured import SETTINGS, find_missing, format_cells, format_titles, make_evaluator, measure, merge_parts
from result_rows import ATTACKS, ResultRows
from trained import MODELS, TITLES, TrainedModels, make_concept

from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import RunConfig, TrainConfig
from advunlearn.miniature import captions
from advunlearn.models.loading import TextToImage, load

WAYS = {
    "wide": "AdvUnlearn, 64 subjects",
    "clean": "AdvUnlearn, half clean prompts",
    "wide_clean": "AdvUnlearn, 64 subjects, half clean prompts",
}
HALF_CLEAN = "advunlearn_half_clean"


@dataclass(frozen=True, kw_only=True)
class WideConcept(ConceptConfig):
    """A style that is erased on all objects of the miniature."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """What the style is erased on."""
        return tuple(captions.objects())


def choose_models(model: TextToImage, style: str, seed: int, way: str) -> TrainedModels:
    """Return the models of a way of training, whose folder is its own."""
    wide = way.startswith("wide")
    concept = WideConcept(concept=style, kind="style") if wide else make_concept(style)
    return TrainedModels(model, concept, seed, suffix="_wide" * wide)


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Train and measure what is missing."""
    torch.set_num_threads(1)
    MODELS[HALF_CLEAN] = RunConfig(train=TrainConfig(clean_share=0.5))
    model = load("miniature", dtype=torch.bfloat16)
    for style in args.styles:
        evaluator = make_evaluator(model, make_concept(style))
        for seed in args.seeds:
            for way in args.ways:
                key = {"concept": style, "seed": seed, "model": way}
                if missing := find_missing(results, key, list(ATTACKS)[2:]):
                    models = choose_models(model, style, seed, way)
                    subject, seconds = models.get(HALF_CLEAN if way.endswith("clean") else "advunlearn")
                    measure(evaluator, subject, results, key | {"training_seconds": seconds}, missing)


def table(results: ResultRows) -> str:
    """Return the rows of each style as Markdown, summed over seeds."""
    styles = list(dict.fromkeys(row["concept"] for row in results.rows))
    recipes = [row for row in ResultRows("phenomenon.json", SETTINGS).rows if row["concept"] in styles]
    found = merge_parts([*recipes, *results.rows], ("concept", "model", "seed"))
    titles = ["style", "model", "seeds", *format_titles(tuple(ATTACKS))]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for style, (kind, title) in [(style, item) for style in styles for item in (TITLES | WAYS).items()]:
        models = [model for (s, k, _), model in found.items() if (s, k) == (style, kind)]
        models = [model for model in models if set(ATTACKS) <= set(model["asr"])]
        if models:
            lines.append(f"| {' | '.join([style, title, str(len(models)), *format_cells(models, tuple(ATTACKS))])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--styles", nargs="+", default=["noto"], choices=captions.styles())
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    results = ResultRows("styles.json", SETTINGS)
    if args.what == "run":
        run(args, results)
    else:
        print(table(results))


if __name__ == "__main__":
    main()
