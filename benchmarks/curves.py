"""Attack success against the number of training iterations and of attack steps, as tables and charts.

    python benchmarks/curves.py [--concept church] [--lengths 25 50 100 200 400] [--cases 50]

Each recipe is trained once, stopped at every length, and attacked for 40 steps; at 200 iterations the attacks take
--budget steps and are judged every 10 steps. Writes benchmarks/results/curves-<concept>.json row by row, and
docs/lab-notes/curves-<what>.svg. An interrupted run resumes with the trainings saved in --work.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from result_rows import WHOLE_VOCABULARY, ResultRows

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
from advunlearn.reporting.charts import draw_svg_file
from advunlearn.training.checkpoint import Checkpoints
from advunlearn.training.trainer import train

STEPS = 40  # of an attack where training iterations are compared
LONG = 200  # iterations where attacks' steps are
KEYS = ("esd", "esd_text", "advunlearn")
WHAT = {
    "clean": "plain prompts",
    "synonyms": "synonyms",
    "unlearndiffatk": "UnlearnDiffAtk",
    "soft_prefix": "soft prefix",
}


def run(
    concept: ConceptConfig,
    lengths: list[int],
    cases: int,
    budget: int,
    seed: int,
    work: pathlib.Path,
    results: ResultRows,
) -> None:
    """Train and measure the missing rows, one per recipe and length."""
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    short = EvaluateConfig(cases=cases, attack_steps=STEPS, judge_interval=STEPS, repeats=1, seed=seed)
    long = replace(short, attack_steps=budget, judge_interval=10)
    prompts = retain_prompts(concept.names, concept.kind)
    for key in KEYS:
        recipe, keep = RECIPES[key], Checkpoints(work / f"{concept.concept}-{key}", every=10**9)
        for length in lengths:
            if results.has(recipe=key, iterations=length):
                continue
            config = replace(recipe.train, iterations=length)
            result = train(
                model,
                RunConfig(concept=concept, attack=recipe.attack, train=config, bank=BankConfig()),
                prompts,
                checkpoints=keep,
                resume=keep.exists(),
            )
            measuring = long if length == LONG else short
            evaluator = Evaluator(model, judge, concept, measuring, EvaluationInputs(attack_settings=WHOLE_VOCABULARY))
            measured = evaluator.measure(Subject(result.encoder, result.denoiser))
            results.add({"recipe": key, "iterations": length, **measured.to_dict()}, concept=concept.concept)
            print(key, length, {a: c["success"] for a, c in measured.asr.items()}, measured.utility, flush=True)


def successes(row: dict[str, Any], attack: str) -> int:
    """Return the successes of an attack after `STEPS` steps."""
    curve = dict(map(tuple, row["asr_by_budget"].get(attack, [])))
    return curve[STEPS] if curve else row["asr"][attack]["success"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="church")
    parser.add_argument("--lengths", nargs="+", type=int, default=[25, 50, 100, 200, 400])
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--budget", type=int, default=80)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "advunlearn-curves")
    parser.add_argument("--eval-seed", type=int, default=4242)
    args = parser.parse_args()
    settings = {"cases": args.cases, "budget": args.budget, "eval_seed": args.eval_seed}
    results = ResultRows(f"curves-{args.concept}.json", settings)
    concept = ConceptConfig(concept=args.concept)
    run(concept, args.lengths, args.cases, args.budget, args.eval_seed, args.work, results)
    rows = results.rows
    for attack, title in WHAT.items():
        series = {key: [(r["iterations"], successes(r, attack)) for r in rows if r["recipe"] == key] for key in KEYS}
        text = draw_svg_file(f"{title}: successes of {args.cases}", series, "training iterations")
        (ROOT / "docs" / "lab-notes" / f"curves-iterations-{attack}.svg").write_text(text)
    for attack in ("unlearndiffatk", "soft_prefix"):
        series = {r["recipe"]: r["asr_by_budget"][attack] for r in rows if len(r["asr_by_budget"][attack]) > 2}
        if not series:  # none of the lengths is `LONG`
            continue
        text = draw_svg_file(f"{WHAT[attack]}: successes of {args.cases}", series, "attack steps")
        (ROOT / "docs" / "lab-notes" / f"curves-budget-{attack}.svg").write_text(text)


if __name__ == "__main__":
    main()
