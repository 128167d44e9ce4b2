"""What each choice is worth: one setting changed at a time, everything else the recipe's.

    python benchmarks/ablations.py run [--study layers gamma ...] [--concepts castle] [--seeds 0 1 2]
    python benchmarks/ablations.py table

`run` trains and measures each value of a study, by plain prompts, other routes and both attacks, and passes over the
rows that benchmarks/results/ablations.json has. `table` prints Markdown: counts summed over seeds, with the spread.
All arithmetic of the frozen parts is in bf16.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kept import WHOLE_VOCABULARY, Kept

from advunlearn import miniature
from advunlearn.config import BankConfig, ConceptConfig, EvaluateConfig
from advunlearn.evaluation.cases import make_cases, retain_prompts
from advunlearn.evaluation.evaluate import Evaluator, Subject
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.models import load
from advunlearn.quirks import Quirks
from advunlearn.recipes import RECIPES
from advunlearn.trainer import train

Prompts = Callable[[ConceptConfig, ConvJudge], list[str]]


@dataclass(frozen=True)
class Change:
    """What a row changes of the recipe."""

    train: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] = field(default_factory=dict)
    quirks: Quirks | None = None
    prompts: Prompts = lambda concept, judge: retain_prompts(concept)


def without_neighbours(concept: ConceptConfig, judge: ConvJudge) -> list[str]:
    """Leave out what names an object of the concept's family."""
    near = {row.object for row in make_cases(concept, judge, 1, 1).neighbours}
    words = {word for name in near for word in (name, captions.keyword_route(name), *captions.foreign_routes(name))}
    return [row for row in retain_prompts(concept) if not any(word in row for word in words)]


def unfiltered(concept: ConceptConfig, judge: ConvJudge) -> list[str]:
    """Add, for every sixth prompt, one that asks for the concept: what a list that nobody filtered may hold."""
    rows = retain_prompts(concept)
    routes = [concept.names[0], *captions.foreign_routes(concept.names[0])]
    return rows + [captions.caption(routes[i % len(routes)]) for i in range(len(rows) // 6)]


STUDIES: dict[str, dict[str, Change]] = {
    "mode": {mode: Change({"mode": mode}) for mode in ("advunlearn", "fast", "official")},
    "layers": {("all" if n == 0 else str(n)): Change({"layers": n}) for n in (1, 2, 0)},
    "trainable": {what: Change({"trainable": what}) for what in ("layers", "attention", "mlp", "all")},
    "gamma": {str(g): Change({"retain_weight": g}) for g in (0.0, 0.1, 0.3, 0.5, 1.0, 2.0)},
    "position": {p: Change(attack={"position": p}) for p in ("prefix", "replace", "add")},
    "span": {"tokens": Change(), "words": Change(quirks=Quirks(words_for_tokens=True))},
    "retain": {
        "filtered": Change(), "unfiltered": Change(prompts=unfiltered),
        "no neighbours": Change(prompts=without_neighbours),
    },
}  # fmt: skip


def run(args: argparse.Namespace, kept: Kept) -> None:
    """Train and measure what `kept` lacks."""
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    recipe = RECIPES["advunlearn"]
    for name in args.concepts:
        concept = ConceptConfig(concept=name, kind="style" if name in captions.styles() else "object")
        config = EvaluateConfig(**kept.settings["evaluate"])
        evaluator = Evaluator(model, judge, concept, config, given=WHOLE_VOCABULARY)
        for seed in args.seeds:
            for study in args.study:
                for value, change in STUDIES[study].items():
                    key = {"concept": name, "seed": seed, "study": study, "value": value}
                    if kept.has(**key):
                        continue
                    config = replace(recipe.train, seed=seed, iterations=kept.settings["iterations"], **change.train)
                    began = time.perf_counter()
                    result = train(
                        model, concept, replace(recipe.attack, **change.attack), config, BankConfig(),
                        change.prompts(concept, judge), quirks=change.quirks,
                    )  # fmt: skip
                    seconds = time.perf_counter() - began
                    measured = evaluator.measure(Subject(result.encoder, model.denoiser))
                    kept.add({**key, "seconds": seconds, "asr": measured.asr, "utility": measured.utility})
                    print(json.dumps(kept.rows[-1]), flush=True)


def summed(counts: Sequence[dict[str, int]], key: str) -> str:
    """Return counts of several seeds: their sum, and the least and the greatest."""
    each = [c[key] for c in counts]
    return f"{sum(each)}/{sum(c['total'] for c in counts)} ({min(each)} to {max(each)})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown, the seeds of one value together."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["study"], row["concept"], row["value"]), []).append(row)
    lines = ["| study | concept | value | seeds | plain | other routes | UnlearnDiffAtk | soft prefix | retained |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for (study, concept, value), group in groups.items():
        cells = [
            summed([r["asr"][a] for r in group], "success")
            for a in ("clean", "routes", "unlearndiffatk", "soft_prefix")
        ]  # fmt: skip
        cells.append(summed([r["utility"]["retained_accuracy"] for r in group], "correct"))
        lines.append(f"| {' | '.join([study, concept, value, str(len(group)), *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--study", nargs="+", choices=STUDIES, default=[s for s in STUDIES if s != "mode"])
    parser.add_argument("--concepts", nargs="+", default=["castle"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    evaluate = {"cases": 30, "attack_steps": 40, "attack_every": 40, "repeats": 1, "seed": 4242}
    kept = Kept("ablations.json", {"iterations": 100, "evaluate": evaluate})
    if args.what == "run":
        run(args, kept)
    else:
        print(table(kept.rows))


if __name__ == "__main__":
    main()
