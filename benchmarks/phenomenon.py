"""Attack success and utility of ESD on the text encoder, ESD on the UNet, and AdvUnlearn with and without retain term.

    python benchmarks/phenomenon.py run --concepts church castle parachute sailboat noto --seeds 0 1 2
    python benchmarks/phenomenon.py table

`run` writes one report per concept and seed to benchmarks/results/phenomenon. It skips models that were measured with
the same settings, so that it can be stopped and called again. `table` prints Markdown: counts summed over seeds, with
minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from result_rows import ATTACKS, WHOLE_VOCABULARY, summed

from advunlearn import miniature
from advunlearn.cli.commands.demo import RECIPES, make_runs, study
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.training import BankConfig, RunConfig
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.models.loading import load

RESULTS = ROOT / "benchmarks" / "results" / "phenomenon"
TITLES = {
    "original": "original model",
    "esd": "ESD, UNet",
    "esd_text": "ESD, text encoder",
    "advunlearn": "AdvUnlearn",
    "advunlearn_no_retain": "AdvUnlearn without retain term",
}
UTILITY = {"retained_accuracy": "retained", "neighbour_accuracy": "neighbours", "style_accuracy": "their style"}


def run(concepts: list[str], seeds: list[int], names: list[str], config: EvaluateConfig) -> None:
    """Train and measure every concept with every seed."""
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for name in concepts:
            path = RESULTS / f"{name.replace(' ', '_')}-{seed}.json"
            saved = json.loads(path.read_text()) if path.exists() else {"models": {}, "losses": {}}
            concept = ConceptConfig(concept=name, kind="style" if name in captions.styles() else "object")
            runs = make_runs(names, concept, BankConfig(), seed=seed)
            chosen = {k: run for k, run in runs.items() if not is_of(saved["models"].get(k), run)}
            original = seed == 0 and "original" not in saved["models"]  # it is the same for every seed
            if not chosen and not original:
                continue
            done = study(
                Evaluator(model, judge, concept, config, EvaluationInputs(attack_settings=WHOLE_VOCABULARY)),
                chosen,
                original=original,
                command=" ".join(["benchmarks/phenomenon.py", *sys.argv[1:]]),
            )
            losses = {k: _every(rows, 10) for k, rows in done.losses.items()}
            for row in done.report["models"].values():
                row.pop("cases", None)  # one row per image, and the images are not saved
            report = done.report | {
                "models": saved["models"] | done.report["models"],
                "losses": saved["losses"] | losses,
            }
            path.write_text(json.dumps(report, indent=1) + "\n")
            print(path.name, summary(report), flush=True)


def is_of(row: dict[str, Any] | None, run: RunConfig) -> bool:
    """Return whether a row was measured with these settings; settings that it lacks had their defaults."""
    return row is not None and RunConfig.from_dict({**row["config"], "concept": run.concept.to_dict()}) == run


def summary(report: dict[str, Any]) -> dict[str, list[int]]:
    """Return the successes of each model, attack by attack."""
    return {k: [r["asr"][a]["success"] for a in ATTACKS if a in r["asr"]] for k, r in report["models"].items()}


def _every(rows: list[dict[str, float]], step: int) -> list[dict[str, float]]:
    return [{k: round(v, 5) for k, v in row.items()} for row in rows[::step]]


def worst(asr: dict[str, dict[str, int]]) -> dict[str, int]:
    """Return the attack that finds most: synonyms, discrete or soft."""
    return max((asr[a] for a in list(ATTACKS)[1:]), key=lambda c: c["success"] / c["total"])


def table() -> None:
    """Print the results as Markdown: counts summed over seeds, minimum and maximum in brackets."""
    reports: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text())
        reports.setdefault(report["concept"], []).append(report)
    print(f"| concept | model | seeds | {' | '.join(ATTACKS.values())} | worst case | {' | '.join(UTILITY.values())} |")
    print("|---" * (8 + len(UTILITY)) + "|")
    for name, rows in sorted(reports.items(), key=lambda item: item[1][0]["kind"]):
        for model in [m for m in TITLES if any(m in r["models"] for r in rows)]:
            of = [r["models"][model] for r in rows if model in r["models"]]
            cells = [summed([m["asr"][a] for m in of], "success") for a in ATTACKS]
            cells.append(summed([worst(m["asr"]) for m in of], "success"))
            cells += [summed([m["utility"][u] for m in of], "correct") for u in UTILITY]
            print(f"| {name} | {TITLES[model]} | {len(of)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--concepts", nargs="+", default=["church", "castle", "parachute", "sailboat", "noto"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--attack-steps", type=int, default=40)
    parser.add_argument("--eval-seed", type=int, default=4242, help="one that chose no setting")
    parser.add_argument("--threads", type=int, default=1, help="two processes of one beat one process of two")
    args = parser.parse_args()
    if args.what == "table":
        table()
    else:
        config = EvaluateConfig(
            cases=args.cases,
            attack_steps=args.attack_steps,
            judge_interval=args.attack_steps,
            repeats=1,
            seed=args.eval_seed,
        )
        torch.set_num_threads(args.threads)
        run(args.concepts, args.seeds, args.models, config)


if __name__ == "__main__":
    main()
