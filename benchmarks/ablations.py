"""Ablations: one setting changed at a time, all others as in the recipe.

    python benchmarks/ablations.py run [--study layers gamma ...] [--values 1 0.5 ...] [--concepts ...] [--seeds ...]
    python benchmarks/ablations.py table

`run` trains each value of a study and measures plain prompts, synonyms and both attacks; it skips the rows that are in
benchmarks/results/ablations.json, and what several studies share is run once. `table` prints Markdown: counts summed
over seeds, with minimum and maximum. The frozen parts compute in bf16. `official` is the recipe with what mode
`official` does like the published code, on trajectories of 50 steps, except that its latents come from a bank and have
their own timesteps.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from result_rows import ATTACKS, WHOLE_VOCABULARY, ResultRows, summed

from advunlearn import miniature
from advunlearn.cli.commands.demo import RECIPES
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.quirks import OFFICIAL, Quirks, quirk_names
from advunlearn.config.training import BankConfig, RunConfig
from advunlearn.evaluation.cases import make_cases
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.miniature.captions import retain_prompts
from advunlearn.models.loading import load
from advunlearn.training.bank import BankSamples, TrajectoryBank, make_banks
from advunlearn.training.trainer import train

RECIPE = RECIPES["advunlearn"]
# Of the published code all but how its samples are drawn: with cleaner latents than the UNet is told, and one timestep.
TOLD_LATE = replace(OFFICIAL, one_timestep=False)
ON_THE_BANK = replace(TOLD_LATE, cleaner_latents=False)
UTILITY = ("retained_accuracy", "style_accuracy")


class ToldLate(TrajectoryBank):
    """A bank whose latents are 39 to 58 timesteps cleaner than their timesteps say (of 50 steps), as published."""

    def draw(self, count: int, prompts: range | None = None, timestep: int | None = None) -> BankSamples:
        """Return `count` samples with the original model's predictions at later timesteps than their latents'."""
        sampler, total, steps = self.sampler, len(self.sampler.denoiser.alphas_cumprod), self.config.sampling_steps
        stride = total // steps
        k = torch.randint(min(2, steps - 1), steps, (count,), generator=self.generator)
        shift = 2 * stride - 1 + torch.randint(stride, (count,), generator=self.generator)
        self.draws += count
        rows = self._rows_of(prompts)
        samples = self._samples_at(rows[torch.randint(len(rows), (count,), generator=self.generator)], k)
        t = (samples.t + shift.to(samples.t.device)).clamp(max=total - 1)
        numbers = samples.prompt.cpu()
        anchor = sampler.anchor(numbers) if sampler.anchor else sampler.uncond.expand(count, -1, -1)
        anchor_pred = sampler.predict(samples.x_t, t, anchor)
        return replace(samples, t=t, anchor=anchor_pred, cond=sampler.predict(samples.x_t, t, sampler.cond(numbers)))


@dataclass(frozen=True)
class Change:
    """The settings of the recipe that a value changes."""

    train: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] = field(default_factory=dict)
    quirks: dict[str, bool] = field(default_factory=dict)
    prompts: str = "filtered"  # of RETAINED
    bank: dict[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """Return a key of the changed settings, equal for all studies that run the same."""
        train = {k: v for k, v in self.train.items() if getattr(RECIPE.train, k) != v}
        attack = {k: v for k, v in self.attack.items() if getattr(RECIPE.attack, k) != v}
        quirks = {k: v for k, v in self.quirks.items() if v}
        bank = [self.bank] if self.bank else []
        return json.dumps([train, attack, quirks, self.prompts, *bank], sort_keys=True)


def without_neighbours(concept: ConceptConfig, judge: ConvJudge) -> list[str]:
    """Leave out prompts that name an object of the concept's family."""
    near = {row.object for row in make_cases(concept, judge, 1, 1).neighbours}
    words = {word for name in near for word in (name, captions.keyword_synonym(name), *captions.foreign_synonyms(name))}
    return [
        row
        for row in retain_prompts(concept.names, concept.kind)
        if not any(f" {word}," in f" {row}," for word in words)
    ]


def unfiltered(concept: ConceptConfig, judge: ConvJudge) -> list[str]:
    """Add a prompt for the concept after every sixth prompt, as in an unfiltered list."""
    rows = retain_prompts(concept.names, concept.kind)
    routes = [concept.names[0], *captions.foreign_synonyms(concept.names[0])]
    out = []
    for i, row in enumerate(rows):  # among the others: of a list that is longer than the bank its beginning is retained
        out += [row, captions.caption(routes[i // 6 % len(routes)])] if i % 6 == 5 else [row]
    return out


RETAINED = {
    "filtered": lambda concept, judge: retain_prompts(concept.names, concept.kind),
    "unfiltered": unfiltered,
    "no neighbours": without_neighbours,
}

STUDIES: dict[str, dict[str, Change]] = {
    "mode": {
        "advunlearn": Change(),
        "fast": Change({"mode": "fast"}),
        "published quirks": Change(quirks=asdict(ON_THE_BANK)),
        "official, on a bank": Change(quirks=asdict(TOLD_LATE), bank={"sampling_steps": 50}),
    },
    "layers": {"all 4" if n == 0 else str(n): Change({"num_layers": n}) for n in (1, 2, 0)},
    "gamma": {str(g): Change({"retain_weight": g}) for g in (0.0, 0.1, 0.3, 0.5, 1.0, RECIPE.train.retain_weight)},
    "search": {
        "8 steps": Change(),
        "16 steps": Change(attack={"steps": 16}),
        "8 steps, from the last": Change(attack={"start": "latest"}),
        "4 steps, from the last": Change(attack={"start": "latest", "steps": 4}),
    },
    "position": {p: Change(attack={"position": p}) for p in ("prefix", "replace", "add")},
    "span": {"by tokens": Change(), "by words": Change(quirks={"words_for_tokens": True})},
    "retain": {name: Change(prompts=name) for name in RETAINED},
}
OF_OBJECTS = ("retain", "span")  # a style's family are all other styles, and its prompts are of one-token words


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Train and measure the missing rows."""
    torch.set_num_threads(args.threads)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    for name in args.concepts:
        concept = ConceptConfig(concept=name, kind="style" if name in captions.styles() else "object")
        budget = EvaluateConfig(**results.settings["evaluate"])
        evaluator = Evaluator(model, judge, concept, budget, EvaluationInputs(attack_settings=WHOLE_VOCABULARY))
        studies = [s for s in args.study if concept.kind == "object" or s not in OF_OBJECTS]
        for seed in args.seeds:
            asked = [c for study in studies for v, c in STUDIES[study].items() if v in (args.values or [v])]
            for change in {c.key(): c for c in asked}.values():
                key = {"concept": name, "seed": seed, "change": change.key()}
                if results.has(**key):
                    continue
                config = replace(RECIPE.train, seed=seed, iterations=results.settings["iterations"], **change.train)
                bank, quirks = BankConfig(**change.bank), Quirks(**change.quirks)
                prompts = RETAINED[change.prompts](concept, judge)
                began = time.perf_counter()
                generator = torch.Generator().manual_seed(seed)
                late = quirks.cleaner_latents
                config = replace(config, quirks=quirk_names(quirks))
                banks = (
                    make_banks(model, RunConfig(concept=concept, bank=bank), prompts, generator, make=ToldLate)
                    if late
                    else None
                )
                result = train(
                    model,
                    RunConfig(concept=concept, attack=replace(RECIPE.attack, **change.attack), train=config, bank=bank),
                    prompts,
                    banks=banks,
                )
                seconds = time.perf_counter() - began
                measured = evaluator.measure(Subject(result.encoder, model.denoiser))
                results.add({**key, "seconds": seconds, "asr": measured.asr, "utility": measured.utility})
                print(json.dumps(results.rows[-1]), flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown, study by study, summed over seeds."""
    concepts = list(dict.fromkeys(row["concept"] for row in rows))
    lines = [f"| study | concept | value | seeds | {' | '.join(ATTACKS.values())} | retained | its style | seconds |"]
    lines.append("|---" * (7 + len(ATTACKS)) + "|")
    for study, values in STUDIES.items():
        for concept in concepts:
            found = {
                value: [r for r in rows if r["concept"] == concept and r["change"] == change.key()]
                for value, change in values.items()
            }
            if sum(map(bool, found.values())) < 2:
                continue
            for value, group in found.items():
                if not group:
                    continue
                cells = [summed([r["asr"][a] for r in group], "success") for a in ATTACKS]
                cells += [summed([r["utility"][u] for r in group], "correct") for u in UTILITY]
                seconds = sum(r["seconds"] for r in group) / len(group)
                lines.append(f"| {' | '.join([study, concept, value, str(len(group)), *cells])} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--study", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--values", nargs="+", help="of the studies, these alone; default: all")
    parser.add_argument("--concepts", nargs="+", default=["castle"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    evaluate = {"cases": 30, "attack_steps": 40, "judge_interval": 40, "repeats": 1, "seed": 4242}
    results = ResultRows("ablations.json", {"iterations": 100, "evaluate": evaluate})
    if args.what == "run":
        run(args, results)
    else:
        print(table(results.rows))


if __name__ == "__main__":
    main()
