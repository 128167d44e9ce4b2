"""Steps that concept inversion (arXiv 2308.01508) needs to bring a concept back, by the adversary used in training.

    python benchmarks/inversion.py run [--concept castle] [--ways default "4 words" ...] [--seeds 0 1 2]
    python benchmarks/inversion.py table [--concept castle] [--eval-seed 4242]

Each configuration is trained, then attacked by an inversion with 16 images per step and a learning rate of 0.01 (the
published 0.08 is for 5000 steps). A successful case counts at all later steps too. `run` writes
benchmarks/results/inversion-CONCEPT.json row by row and resumes where it was interrupted; `table` prints Markdown,
counts summed over seeds. The frozen parts compute in bf16.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from result_rows import ResultRows, summed

from advunlearn import miniature
from advunlearn.cli.commands.demo import RECIPES
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.training import BankConfig, RunConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.evaluation.metrics import Measurement
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.miniature.captions import retain_prompts
from advunlearn.models.loading import load
from advunlearn.models.text_encoder import frozen
from advunlearn.training.trainer import train

INVERSION = {"batch": 16, "lr": 0.01}
EVERY, LOOKS = 50, 8
UTILITY = ("retained_accuracy", "neighbour_accuracy", "style_accuracy")


@dataclass(frozen=True)
class Way:
    """The settings of a recipe that a configuration changes."""

    attack: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    recipe: str = "advunlearn"


WAYS = {
    "ESD, text encoder": Way(recipe="esd_text"),
    "default": Way(),
    "4 words": Way({"inversion_tokens": 4}),
    "4 words, 200 iterations": Way({"inversion_tokens": 4}, {"iterations": 200}),
    "8 words, 8 steps, share 0.75": Way({"inversion_tokens": 8, "inversion_steps": 8, "inversion_share": 0.75}),
}


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Train and measure the missing rows."""
    torch.set_num_threads(args.threads)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    concept = ConceptConfig(concept=args.concept, kind="style" if args.concept in captions.styles() else "object")
    evaluator = Evaluator(
        model,
        judge,
        concept,
        EvaluateConfig(**results.settings["evaluate"]),
        EvaluationInputs(attack_settings={"cce": results.settings["inversion"]}),
    )
    for seed in args.seeds:
        for name in args.ways:
            if results.has(way=name, seed=seed):
                continue
            way, began = WAYS[name], time.perf_counter()
            recipe = RECIPES[way.recipe]
            config = replace(recipe.train, seed=seed, **way.train)
            attack = replace(recipe.attack, **way.attack)
            result = train(
                model,
                RunConfig(concept=concept, attack=attack, train=config, bank=BankConfig()),
                retain_prompts(concept.names, concept.kind),
            )
            seconds = time.perf_counter() - began
            results.add({"way": name, "seed": seed, "seconds": seconds} | measured(evaluator, result.encoder))
            print(json.dumps(results.rows[-1]), flush=True)


def measured(evaluator: Evaluator, encoder: Any) -> dict[str, Any]:
    """Return the successes each time the images were judged, and the utility."""
    subject, out = Subject(encoder, evaluator.original.denoiser), Measurement()
    with frozen(encoder, *subject.denoiser.modules()):
        clean = evaluator.measure_plain(subject, out)
        evaluator.measure_utility(subject, out)
        evaluator.measure_attack(subject, "cce", clean, out)
    return {"curve": out.asr_by_budget["cce"], "total": out.attacks["cce"]["sum"]["total"], "utility": out.utility}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return Markdown, summed over seeds: successes, with minimum and maximum."""
    looks = [EVERY * n for n in range(LOOKS + 1)]
    heads = ["way", "seeds", "no attack", *(f"{n} steps" for n in looks[1:]), "retained", "neighbours", "its style"]
    lines = [f"| {' | '.join([*heads, 'training, s'])} |", "|---" * (len(heads) + 1) + "|"]
    for way in WAYS:
        own = [row for row in rows if row["way"] == way]
        if own:
            cells = [way, str(len(own))]
            for look in looks:
                counts = [{"success": at(row["curve"], look), "total": row["total"]} for row in own]
                cells.append(summed(counts, "success"))
            cells += [summed([row["utility"][name] for row in own], "correct") for name in UTILITY]
            cells.append(f"{sum(row['seconds'] for row in own) / len(own):.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def at(curve: Sequence[Sequence[int]], look: int) -> int:
    """Return the successes up to a step; judging stops when all cases are successful."""
    return [found for step, found in curve if step <= look][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--concept", default="castle")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--eval-seed", type=int, default=4242)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    evaluate = EvaluateConfig(
        cases=args.cases, attack_steps=EVERY * LOOKS, judge_interval=EVERY, repeats=1, seed=args.eval_seed
    )
    settings = {"evaluate": evaluate.to_dict(), "inversion": INVERSION}
    results = ResultRows(f"inversion-{args.concept}.json", settings)
    if args.what == "run":
        run(args, results)
    print(table(results.rows))


if __name__ == "__main__":
    main()
