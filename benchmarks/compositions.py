"""Pairs, backgrounds and in-prompt retention, with and without such prompts in the retain set.

    python benchmarks/compositions.py run --models original esd_text advunlearn advunlearn_composed --seeds 0 1 2
    python benchmarks/compositions.py run --concepts church parachute --models original esd_text advunlearn --attacks
    python benchmarks/compositions.py table

`run` measures what is not in benchmarks/results/compositions.json, and trains the models that are missing in
runs/benchmarks; `advunlearn_composed` retains the same prompts with a pair or a background after every second. The
frozen parts compute in bf16. `table` prints Markdown: counts summed over seeds, with minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from result_rows import ATTACKS, WHOLE_VOCABULARY, ResultRows, summed
from trained import TrainedModels, make_concept

from advunlearn import miniature
from advunlearn.config.concept import ConceptConfig, article
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.compositions import BACKGROUND_COLOURS, add_compositions
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.models.loading import load

MODELS = {
    "original": "original model",
    "esd_text": "ESD, text encoder",
    "advunlearn": "AdvUnlearn",
    "advunlearn_composed": "AdvUnlearn, pairs and backgrounds retained",
}
UTILITY = {
    "retained_accuracy": "retained",
    "style_accuracy": "style",
    "pair_accuracy": "pairs",
    "background_accuracy": "backgrounds",
    "in_prompt_accuracy": "in-prompt",
}
COMPOSED = "_composed"
REPEATS = 8  # of compositions: 64 images of each kind


def compose(prompts: list[str], names: list[str]) -> list[str]:
    """Return the prompts with a pair or a background, in turn, after every second."""
    rows = []
    for i, prompt in enumerate(prompts):
        rows.append(prompt)
        if i % 2:
            k = i // 2
            name, other = (captions.with_article(names[(k + shift) % len(names)]) for shift in (0, 7 + k // len(names)))
            colour = BACKGROUND_COLOURS[k // 2 % len(BACKGROUND_COLOURS)]
            rows.append(f"{name}, on {article(colour)} background" if k % 2 else f"{name} and {other}")
    return rows


def make_evaluator(model: Any, judge: ConvJudge, concept: ConceptConfig, config: EvaluateConfig) -> Evaluator:
    """Return an evaluator with 64 compositions of each kind."""
    evaluator = Evaluator(model, judge, concept, config, EvaluationInputs(attack_settings=WHOLE_VOCABULARY))
    evaluator.cases = add_compositions(evaluator.cases, concept, judge, REPEATS)
    generator = torch.Generator().manual_seed(config.seed)
    evaluator.composition_noise = {
        kind: torch.randn(len(rows), *model.denoiser.latent_shape, generator=generator)
        for kind, rows in evaluator.cases.compositions.items()
    }
    return evaluator


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Train and measure the missing rows."""
    torch.set_num_threads(args.threads)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    for name in args.concepts:
        concept = make_concept(name)
        evaluator = make_evaluator(model, judge, concept, EvaluateConfig(**results.settings["evaluate"]))
        for seed in args.seeds:
            for kind in args.models:
                key = {"concept": name, "seed": seed * (kind != "original"), "model": kind}
                if not results.has(**key):
                    subject, seconds = choose_models(evaluator, kind, seed).get(kind.removesuffix(COMPOSED))
                    measured = evaluator.measure(subject, args.attacks)
                    row = {"training_seconds": seconds, "asr": measured.asr, "utility": measured.utility}
                    results.add({**key, **row})
                    print(json.dumps(results.rows[-1]), flush=True)


def choose_models(evaluator: Evaluator, kind: str, seed: int) -> TrainedModels:
    """Return the models of a seed; of composed prompts, those that the evaluator measures are left out."""
    if not kind.endswith(COMPOSED):
        return TrainedModels(evaluator.model, evaluator.concept, seed)
    concept = evaluator.concept
    names = [other for other in captions.objects() if other not in concept.names]
    tested = {row.prompt for rows in evaluator.cases.compositions.values() for row in rows}
    composed = compose(captions.retain_prompts(concept.names, concept.kind), names)
    prompts = [prompt for prompt in composed if prompt not in tested]
    return TrainedModels(evaluator.model, concept, seed, prompts, COMPOSED)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, summed over seeds."""
    lines = [f"| concept | model | seeds | {' | '.join(ATTACKS.values())} | {' | '.join(UTILITY.values())} |"]
    lines.append("|---" * (3 + len(ATTACKS) + len(UTILITY)) + "|")
    for concept in dict.fromkeys(row["concept"] for row in rows):
        for kind, title in MODELS.items():
            group = [row for row in rows if row["concept"] == concept and row["model"] == kind]
            if group:
                cells = [sum_attack(group, name) for name in ATTACKS]
                cells += [summed([row["utility"][name] for row in group], "correct") for name in UTILITY]
                lines.append(f"| {concept} | {title} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sum_attack(group: Sequence[dict[str, Any]], name: str) -> str:
    """Return the successes of an attack over seeds; "-" if it was not run on all of them."""
    counts = [row["asr"][name] for row in group if name in row["asr"]]
    return summed(counts, "success") if len(counts) == len(group) else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--concepts", nargs="+", default=["castle"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS)[2:], help="nothing behind it: none")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    evaluate = {"cases": 40, "attack_steps": 40, "judge_interval": 40, "repeats": 1, "seed": 4242}
    results = ResultRows("compositions.json", {"evaluate": evaluate})
    if args.what == "run":
        run(args, results)
    else:
        print(table(results.rows))


if __name__ == "__main__":
    main()
