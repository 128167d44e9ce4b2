"""What `demo` and `evaluate` do: train the baselines and AdvUnlearn, attack them all alike, collect one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..config.adversary import AdversaryConfig
from ..config.concept import ConceptConfig
from ..config.evaluation import EvaluateConfig
from ..config.training import BankConfig, TrainConfig
from ..evaluation.evaluator import Evaluator, Measurement, OnProgress, Subject
from ..miniature.captions import retain_prompts
from ..models.loading import TextToImage
from ..training.bank import make_banks
from ..training.events import Callback, Progress, filling
from ..training.recipe import environment
from ..training.trainer import TrainResult, train


@dataclass(frozen=True)
class Recipe:
    """One way to erase."""

    train: TrainConfig
    attack: AdversaryConfig = field(default_factory=AdversaryConfig)


# Chosen on the miniature; the table is in docs/results.md.
RECIPES: dict[str, Recipe] = {
    "esd": Recipe(TrainConfig(mode="esd_unet", iterations=200)),
    "esd_text": Recipe(TrainConfig(mode="esd")),
    "advunlearn": Recipe(TrainConfig()),
    "advunlearn_no_retain": Recipe(TrainConfig(retain_weight=0.0)),
}
BASELINES = ("esd", "esd_text", "advunlearn")


@dataclass
class Study:
    """The outcome of a demo or an evaluation."""

    report: dict[str, Any]
    measurements: dict[str, Measurement]
    losses: dict[str, list[dict[str, float]]]
    results: dict[str, TrainResult]


def empty_report(concept: ConceptConfig, config: EvaluateConfig, command: str) -> dict[str, Any]:
    """Return a report without models."""
    return {
        "concept": ", ".join(concept.names),
        "kind": concept.kind,
        "models": {},
        "budget": config.to_dict(),
        "environment": environment(),
        "command": command,
    }


def train_all(
    model: TextToImage,
    concept: ConceptConfig,
    recipes: Mapping[str, Recipe],
    bank: BankConfig,
    seed: int,
    callback: Callable[[str, Progress], None] | None = None,
) -> dict[str, tuple[TrainResult, float]]:
    """Run several recipes on one concept; all draw from the same banks. Return each result and its seconds."""
    prompts = retain_prompts(concept.names, concept.kind)
    generator = torch.Generator().manual_seed(seed)
    banks, results = None, {}
    for name, recipe in recipes.items():

        def report(progress: Progress, name: str = name) -> None:
            if callback is not None:
                callback(name, progress)

        call: Callback = report
        banks = banks or make_banks(model, concept, prompts, bank, generator, filling(call))
        start = time.perf_counter()
        result = train(model, concept, recipe.attack, replace(recipe.train, seed=seed), bank, prompts, call, banks)
        results[name] = (result, time.perf_counter() - start)
    return results


def study(
    model: TextToImage,
    judge: Any,
    concept: ConceptConfig,
    recipes: Mapping[str, Recipe],
    bank: BankConfig,
    config: EvaluateConfig,
    *,
    seed: int = 0,
    command: str = "",
    original: bool = True,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    on_train: Callable[[str, Progress], None] | None = None,
    on_measure: Callable[[str], OnProgress] | None = None,
) -> Study:
    """Train each recipe; measure every result, and the original model unless told not to, at the same budget.

    `given` are the attacks' own settings, as `Evaluator` takes them.
    """
    evaluator = Evaluator(model, judge, concept, config, given=given)  # first: it refuses what the judge cannot see
    trained = train_all(model, concept, recipes, bank, seed, on_train)
    out = Study(empty_report(concept, config, command), {}, {}, {k: r for k, (r, _) in trained.items()})
    subjects = {"original": evaluator.original} if original else {}
    subjects |= {name: Subject(result.encoder, result.denoiser) for name, (result, _) in trained.items()}
    for name, subject in subjects.items():
        if on_measure is not None:
            evaluator.on_progress = on_measure(name)
        measured = evaluator.measure(subject)
        row = measured.row() | {"seconds": 0.0, "config": {}}
        if name in trained:
            result, seconds = trained[name]
            recipe = recipes[name]
            row["seconds"] = round(seconds, 1)
            row["config"] = {
                "train": replace(recipe.train, seed=seed).to_dict(),
                "attack": recipe.attack.to_dict(),
                "bank": bank.to_dict(),
                "concept": concept.to_dict(),
            }
            out.losses[name] = result.losses
        out.report["models"][name], out.measurements[name] = row, measured
    return out
