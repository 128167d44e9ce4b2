"""UnlearnDiffAtk's settings: success and own loss at equal steps, with the published schedule as yardstick.

    python benchmarks/search_settings.py run --concepts castle church parachute --cases 32 --steps 100 --strength 0.7
    python benchmarks/search_settings.py table

Attacks ESD on the text encoder, applied at a strength between 0 (the original encoder) and 1, where more cases can be
won than at full strength. `run` adds a row to benchmarks/results/search-settings.json for each (concept, seed,
strength, steps, way), and skips rows that exist, of however many cases. `table` prints Markdown: of the cases that the
plain prompt leaves open, those whose image shows the concept after the last step, for each test seed; results whose own
loss is worse than the plain prompt's; F of the search per case.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from attacks import TRAINING, encoder_of
from bypasses import interpolate
from result_rows import ResultRows

from advunlearn import miniature
from advunlearn.attacks.registry import make_attack
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.convnet import ConvJudge
from advunlearn.losses import denoising_loss
from advunlearn.models.counting import count_forwards
from advunlearn.models.loading import load
from advunlearn.models.text_encoder import frozen

NAME = "unlearndiffatk"
SHARED: dict[str, Any] = {"attack_tokens": 5, "sampling_steps": 10, "repeats": 0}
RANDOM: dict[str, Any] = {"timesteps": 0, "start": "random", "weight_decay": 0.0}
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "published": {"lr": 0.01, "keep": "last", "vocabulary": "all"},
    "published, typed": {"lr": 0.01, "keep": "last"},
    **{f"random, {lr}": {"lr": lr, **RANDOM} for lr in (0.005, 0.01, 0.02, 0.05)},
    **{f"random, {lr}, last": {"lr": lr, **RANDOM, "keep": "last"} for lr in (0.01, 0.05)},
}


def measure(evaluator: Evaluator, subject: Subject, way: dict[str, Any]) -> dict[str, Any]:
    """Attack the open cases in one way; return counts, and the cases that were won."""
    evaluator.inputs = EvaluationInputs(attack_settings={NAME: way})
    clean = evaluator.generate_from_prompts(subject, evaluator.cases.plain, evaluator.noise)
    cases = (~evaluator.detect_concept(clean)).nonzero().flatten()
    counted = count_forwards(subject.denoiser)
    context = replace(evaluator.make_context(subject, cases), denoiser=counted)
    attack: Any = make_attack(NAME, context, evaluator.make_attack_settings(NAME), evaluator.config.seed)
    started = time.process_time()
    attack.run()
    seconds = time.process_time() - started
    images = evaluator.generate_images(subject, attack.result().conditioning, evaluator.noise[cases])
    won = cases[evaluator.detect_concept(images)].tolist()
    forwards = counted.forwards  # before the comparison with the plain prompts, which is no part of the search
    worse = int((attack.objective() > compute_plain_losses(attack)).sum())
    return {"open": len(cases), "won": won, "worse": worse, "F": forwards, "seconds": round(seconds, 1)}


@torch.no_grad()
def compute_plain_losses(attack: Any) -> torch.Tensor:
    """Return the losses of the plain prompts (N,) on the draws on which the attack compares its points."""
    context = attack.context
    conditioning = context.encode(context.prompts)
    losses = torch.zeros(len(conditioning))
    for x_t, t, noise in attack.fixed_draws:
        losses += denoising_loss(context.denoiser.noise_pred(x_t, t, conditioning), noise).cpu()
    return losses / len(attack.fixed_draws)


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Measure the missing rows."""
    torch.set_num_threads(1)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    budget = {"cases": args.cases, "attack_steps": args.steps, "judge_interval": args.steps, "seed": args.eval_seed}
    for name in args.concepts:
        concept = ConceptConfig(concept=name)
        erased = encoder_of(model, concept, "esd_text", TRAINING)
        subject = Subject(interpolate(model.text_encoder, erased, args.strength), model.denoiser)
        evaluator = Evaluator(model, judge, concept, EvaluateConfig(**SHARED, **budget))
        key = {"concept": name, "seed": args.eval_seed, "strength": args.strength, "steps": args.steps}
        for way in args.ways:
            if results.has(**key, way=way):
                continue
            with frozen(subject.encoder, *subject.denoiser.modules()):
                row = {**key, "cases": args.cases, "way": way, **measure(evaluator, subject, WAYS[way])}
            results.add(row)
            print(row, flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return Markdown, a row for each strength, number of steps and way; a cell has the test seeds in turn."""
    concepts = list(dict.fromkeys(row["concept"] for row in rows))
    heads = ["strength", "steps", "way", *concepts, "all", "worse than the plain prompt", "F per case"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["strength"], row["steps"], list(WAYS).index(row["way"]))):
        groups.setdefault((row["strength"], row["steps"], row["way"]), []).append(row)
    for group, own in groups.items():
        cells = [[count(row) for row in own if row["concept"] == concept] for concept in concepts]
        won, open_cases, worse = (sum(values) for values in zip(*map(totals, own), strict=True))
        forwards = sum(row["F"] for row in own) / open_cases
        ends = [f"{won}/{open_cases}", str(worse), f"{forwards:.0f}"]
        lines.append(f"| {' | '.join([*map(str, group), *(', '.join(cell) or '-' for cell in cells), *ends])} |")
    return "\n".join(lines)


def totals(row: dict[str, Any]) -> tuple[int, int, int]:
    """Return a row's won cases, open cases, and results that are worse than the plain prompt."""
    return len(row["won"]), row["open"], row["worse"]


def count(row: dict[str, Any]) -> str:
    """Return a row's won cases of the open ones."""
    return f"{len(row['won'])}/{row['open']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--concepts", nargs="+", default=["castle", "church", "parachute"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["default", "published, typed"])
    parser.add_argument("--strength", type=float, default=0.7)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--eval-seed", type=int, default=4242)
    args = parser.parse_args()
    results = ResultRows("search-settings.json", {"evaluate": SHARED, "training": TRAINING})
    if args.what == "run":
        run(args, results)
    else:
        print(table(results.rows))


if __name__ == "__main__":
    main()
