"""Robustness against the cost of training: adversaries with more and fewer steps, and the published code.

    python benchmarks/cost.py run [--concept mosque] [--ways default ...] [--lengths 100 ...] [--seeds 0]
    python benchmarks/cost.py table

Each configuration is trained once and measured at several lengths: plain prompts, synonyms, UnlearnDiffAtk, the soft
prefix, and concept inversion. The unit of cost is F, a UNet forward pass of one sample (a backward pass is 2 F),
including filling the bank. `official` trains like the published code, on one concept sample and five retained samples
with an attack of 30 steps; here its latents come from the bank, but the mean cost of sampling them in every step, in
trajectories of 50 steps, is added. Its learning rate is ours, since the published one is for another model. The frozen
parts compute in bf16. `run` writes benchmarks/results/cost.json row by row; `table` prints Markdown and draws
docs/lab-notes/cost-*.svg of everything except `official`, which lies far to the right.
"""

from __future__ import annotations

import argparse
import copy
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ablations import ON_THE_BANK
from result_rows import ATTACKS, WHOLE_VOCABULARY, ResultRows, summed

from advunlearn import miniature
from advunlearn.cli.commands.demo import RECIPES
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.presets import preset_values
from advunlearn.config.quirks import NONE, Quirks, quirk_names
from advunlearn.config.training import BankConfig, RunConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.evaluation.metrics import Measurement
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature.captions import retain_prompts
from advunlearn.models.counting import count_forwards
from advunlearn.models.loading import load
from advunlearn.models.text_encoder import frozen
from advunlearn.reporting.charts import draw_svg_file
from advunlearn.training.events import Progress
from advunlearn.training.official import PublishedSampler
from advunlearn.training.trainer import train
from benchmarks.suites.iteration import Work

INVERSION = {"steps": 200}
ESD, WORST = "ESD, text encoder", ("synonyms", "unlearndiffatk", "soft_prefix")
SEARCHED = {"unlearndiffatk": "UnlearnDiffAtk", "soft_prefix": "soft prefix", "cce": "concept inversion"}
PUBLISHED_STEPS, STEP = 50, 2  # of a trajectory; F of each: with and without the prompt
LENGTHS = (40, 70, 100, 140)


@dataclass(frozen=True)
class Way:
    """The settings of the recipe that a configuration changes, and the lengths at which it is measured."""

    recipe: str = "advunlearn"
    train: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] = field(default_factory=dict)
    quirks: Quirks = NONE
    fresh: bool = False
    lengths: tuple[int, ...] = LENGTHS


def published(section: str) -> dict[str, Any]:
    """Return the published settings for an object, except those of the length of the run."""
    return {k: v for k, v in preset_values("object", section).items() if k not in ("iterations", "warmup", "lr")}


WAYS = {
    ESD: Way("esd_text", lengths=(100, 200)),
    "default": Way(),
    "1 step (fast)": Way(train={"mode": "fast"}),
    "4 steps": Way(attack={"steps": 4}),
    "4 steps, from the last": Way(attack={"steps": 4, "start": "latest"}),
    "16 steps": Way(attack={"steps": 16}),
    "1 restart": Way(attack={"restarts": 1}),
    "30 steps, 1 restart": Way(attack={"steps": 30, "restarts": 1}),
    "official": Way(
        train=published("train"),
        attack=published("attack"),
        quirks=ON_THE_BANK,
        fresh=True,
        lengths=(50, 100, 200, 400),
    ),
}


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Train and measure the missing rows."""
    torch.set_num_threads(args.threads)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    concept = ConceptConfig(concept=args.concept)
    evaluator = Evaluator(
        model,
        judge,
        concept,
        EvaluateConfig(**results.settings["evaluate"]),
        EvaluationInputs(attack_settings={**WHOLE_VOCABULARY, "cce": INVERSION}),
    )
    for seed in args.seeds:
        for name in args.ways:
            asked = [n for n in WAYS[name].lengths if n in (args.lengths or [n])]
            lengths = [n for n in asked if not results.has(way=name, seed=seed, iterations=n)]
            if not lengths:
                continue
            for length, (encoder, spent) in trained(model, concept, WAYS[name], seed, lengths).items():
                row = {"way": name, "seed": seed, "iterations": length, "forwards": spent}
                results.add(row | measured(evaluator, Subject(encoder, model.denoiser)))
                print(json.dumps(results.rows[-1]), flush=True)


def trained(
    model: Any, concept: ConceptConfig, way: Way, seed: int, lengths: Sequence[int]
) -> dict[int, tuple[Any, float]]:
    """Return the encoders of a configuration by length, each with its cost in F."""
    recipe, counted = RECIPES[way.recipe], count_forwards(model.denoiser)
    config = replace(recipe.train, seed=seed, iterations=max(lengths), quirks=quirk_names(way.quirks), **way.train)
    attack, bank = replace(recipe.attack, **way.attack), BankConfig()
    out: dict[int, tuple[Any, float]] = {}
    filled = 0

    def keep(progress: Progress) -> None:
        nonlocal filled
        if progress.phase != "train":
            filled = filled if progress.phase == "attack" else counted.forwards
            return
        if progress.iteration in lengths:
            anew = sampled_anew(Work(attack, config, bank), progress.iteration) - filled if way.fresh else 0.0
            out[progress.iteration] = copy.deepcopy(progress.encoder), counted.forwards + anew

    train(
        replace(model, denoiser=counted),
        RunConfig(concept=concept, attack=attack, train=config, bank=bank),
        retain_prompts(concept.names, concept.kind),
        callback=keep,
    )
    return out


def sampled_anew(work: Work, iterations: int) -> float:
    """Return the cost in F of sampling every draw of some iterations, as the published code does."""
    work = replace(work, bank=replace(work.bank, sampling_steps=PUBLISHED_STEPS))
    attacked = max(0, iterations - work.train.warmup) * work.attack_sampling(PublishedSampler)
    return STEP * (iterations * work.train_sampling(PublishedSampler) + attacked)


def measured(evaluator: Evaluator, subject: Subject) -> dict[str, Any]:
    """Return attack success, concept inversion included, and utility."""
    plain = evaluator.measure(subject)
    out = Measurement()
    with frozen(subject.encoder, *subject.denoiser.modules()):
        evaluator.measure_attack(subject, "cce", evaluator.measure_plain(subject, out), out)
    return {"asr": plain.asr | {"cce": out.attacks["cce"]["sum"]}, "utility": plain.utility}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return Markdown, summed over the seeds of a configuration and length."""
    attacks = ATTACKS | SEARCHED
    lines = [f"| way | iterations | thousand F | seeds | {' | '.join(attacks.values())} | retained | its style |"]
    lines.append("|---" * (6 + len(attacks)) + "|")
    for name, way in WAYS.items():
        for length in way.lengths:
            own = [row for row in rows if (row["way"], row["iterations"]) == (name, length)]
            if own:
                cells = [summed([row["asr"][attack] for row in own], "success") for attack in attacks]
                for name in ("retained_accuracy", "style_accuracy"):
                    cells.append(summed([row["utility"][name] for row in own], "correct"))
                spent = sum(row["forwards"] for row in own) / len(own) / 1000
                lines.append(f"| {name} | {length} | {spent:.0f} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *robust(rows)])


def draw(rows: Sequence[dict[str, Any]], attack: str, title: str) -> None:
    """Draw the successes of an attack against the cost, a line per configuration, means over seeds."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name, way in WAYS.items():
        for length in way.lengths if not way.fresh else ():
            if own := [row for row in rows if (row["way"], row["iterations"]) == (name, length)]:
                spent = statistics.mean(row["forwards"] for row in own) / 1000
                found = statistics.mean(row["asr"][attack]["success"] for row in own)
                short = name.replace(", text encoder", "").replace("from the last", "warm")  # the legend is narrow
                series.setdefault(short, []).append((spent, found))
    cases = rows[0]["asr"][attack]["total"]
    text = draw_svg_file(f"{title}: successes of {cases}", series, "thousand F of training, with filling the bank")
    (ROOT / "docs" / "lab-notes" / f"cost-{attack}.svg").write_text(text)


def robust(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cost of the shortest robust encoder of each configuration: its worst case at most half of ESD's."""
    groups: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for row in sorted(rows, key=lambda row: row["iterations"]):
        groups.setdefault(row["way"], {}).setdefault(row["iterations"], []).append(row)
    if ESD not in groups:
        return []
    (at, first), *_ = groups[ESD].items()
    bound = worst(first) / 2
    lines = [f"Worst case of {', '.join(WORST)} at most {bound:g}, half of ESD's after {at} iterations:"]
    for way, lengths in groups.items():
        if way != ESD:
            reached = next((n for n, own in lengths.items() if worst(own) <= bound), None)
            n = reached or max(lengths)
            spent = statistics.mean(row["forwards"] for row in lengths[n]) / 1000
            lines.append(f"- {way}: {'' if reached else 'not after '}{n} iterations, {spent:.0f} thousand F")
    return lines


def worst(rows: Sequence[dict[str, Any]]) -> float:
    """Return the successes of the best attack, mean over seeds."""
    return statistics.mean(max(row["asr"][attack]["success"] for attack in WORST) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--lengths", nargs="+", type=int, help="of each way's, these alone; default: all")
    parser.add_argument("--concept", default="mosque", help="one that is in no other table: defaults are chosen here")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    evaluate = {"cases": 50, "attack_steps": 40, "judge_interval": 40, "repeats": 1, "seed": 2000}
    results = ResultRows("cost.json", {"concept": args.concept, "evaluate": evaluate})
    if args.command == "run":
        run(args, results)
    print(table(results.rows))
    for attack, title in SEARCHED.items():
        draw(results.rows, attack, title)


if __name__ == "__main__":
    main()
