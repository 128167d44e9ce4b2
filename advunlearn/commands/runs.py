"""Commands that train, or say what training takes."""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from .. import presets, retain
from .. import report as report_files
from ..advice import fitting, sentence
from ..checkpoint import Checkpoints
from ..cli import settings
from ..config import (
    DEMO_BANK,
    DEMO_BUDGET,
    DEMO_TRAIN,
    AttackConfig,
    BankConfig,
    ConceptConfig,
    EvaluateConfig,
    TrainConfig,
)
from ..errors import AdvUnlearnError, TrainingDiverged
from ..estimate import estimate
from ..evaluation.cases import retain_prompts
from ..events import Progress
from ..formats import save_encoder
from ..inputs import command_line, estimated_device, load_judge, load_model, out_folder
from ..plan import Plan
from ..progress import Bar
from ..recipes import BASELINES, RECIPES, recipe_metadata, study
from ..skeleton import skeleton
from ..trainer import train as run
from .common import finish, measuring
from .trained import check_single_file, save_single_file, save_trained

T = TypeVar("T")


def run_settings(args: Namespace) -> tuple[ConceptConfig, TrainConfig, AttackConfig, BankConfig]:
    """Return a run's settings: a preset's, and over them the flags that were given."""

    def chosen(config: type[T]) -> T:
        return settings(config, args, **presets.of(args.preset, config))

    if args.bundle and "ConceptConfig.concept" in vars(args):
        raise AdvUnlearnError(f"--concept and --bundle {args.bundle} both name what to erase; give one of them")
    named = {**presets.of(args.preset, ConceptConfig), **presets.bundle(args.bundle)}
    return settings(ConceptConfig, args, **named), chosen(TrainConfig), chosen(AttackConfig), chosen(BankConfig)


def train_command(args: Namespace) -> None:
    """Train one encoder, or the UNet, and save it with its recipe."""
    concept, config, attack, bank = run_settings(args)
    model, folder = load_model(args), out_folder(args)
    prompts = retained(args, concept)
    if args.checkpoint_every < 1:
        raise AdvUnlearnError(f"--checkpoint-every is {args.checkpoint_every}; it must be at least 1")
    if args.single_file:
        check_single_file(model)
    bar, keep = Bar(config.mode), Checkpoints(folder, args.checkpoint_every)
    try:
        result = run(model, concept, attack, config, bank, prompts, bar.training, checkpoints=keep, resume=args.resume)
    except TrainingDiverged as error:
        save_trained(folder, error.result, config, {"advunlearn.error": str(error)}, last_good=True)
        raise
    finally:
        bar.close()
    configs = {c: v.to_dict() for c, v in (("concept", concept), ("train", config), ("attack", attack), ("bank", bank))}
    report_files.write_json(
        folder / "train.json", {"config": configs, "losses": result.losses, "command": command_line()}
    )
    metadata = recipe_metadata(model, concept, configs)
    path = save_trained(folder, result, config, metadata)
    if args.single_file:
        save_single_file(folder, model, result, metadata)
    last = result.losses[-1]
    text = f"{path}: {config.mode} on {concept.concept!r}, {result.iterations} iterations, last loss {last['loss']:.4f}"
    finish(args, {"file": str(path), "iterations": result.iterations, "losses": last, "config": configs}, text)


def retained(args: Namespace, concept: ConceptConfig) -> list[str]:
    """Return the prompts that a model is to keep: a file's, what the miniature can draw, or objects by their names."""
    also = None if args.retain_without is None else args.retain_without.split(",")
    name = args.retain_set or ("miniature" if args.model == "miniature" else "coco")
    if not args.retain and name != "miniature":
        return retain.chosen(concept.names, name, also)
    return retain.without(retain.read(args.retain) if args.retain else retain_prompts(concept), "", also or ())


def estimate_command(args: Namespace) -> None:
    """Say what a run takes, and which settings fit into common devices."""
    (concept, train, attack, bank), device = run_settings(args), estimated_device(args)
    prompts = retained(args, concept)
    model = functools.cache(lambda dtype: skeleton(args.model, device, getattr(torch, dtype)))
    plan = Plan(
        concept=concept, attack=attack, train=train, bank=bank, dtype=args.dtype,
        resolution=args.resolution or model(args.dtype).denoiser.latent_shape[-1] * 8,
    )  # fmt: skip
    measure = functools.cache(lambda plan: estimate(model(plan.dtype), plan, prompts, device))
    found = measure(plan)
    cards = {f"{size} GB": sentence(plan, advice) for size, advice in fitting(measure, plan).items()}
    rows = "".join(f"\n  {card:>5}: {advice}" for card, advice in cards.items())
    finish(args, found.to_dict() | {"fits": cards}, f"{found.text()}\nwith a tenth to spare on a device of{rows}")


def demo(args: Namespace) -> None:
    """Train the baselines and AdvUnlearn, attack all of them, write the report and the robust encoder."""
    if args.model != "miniature":
        raise AdvUnlearnError("demo runs on the miniature; use train and evaluate for other models")
    concept = settings(ConceptConfig, args)
    config = settings(EvaluateConfig, args, **DEMO_BUDGET)
    model, judge, folder = load_model(args), load_judge(args), out_folder(args)
    bars: dict[str, Bar] = {}

    def on_train(name: str, progress: Progress) -> None:
        bars.setdefault(name, Bar(name)).training(progress)

    def on_measure(name: str) -> Callable[[str, int, int], None]:
        for bar in bars.values():
            bar.close()
        bars[name], follow = measuring(name)
        return follow

    recipes = {k: replace(RECIPES[k], train=replace(RECIPES[k].train, **DEMO_TRAIN)) for k in BASELINES}
    done = study(
        model, judge, concept, recipes, BankConfig(**DEMO_BANK), config,
        seed=args.seed, command=command_line(), on_train=on_train, on_measure=on_measure,
    )  # fmt: skip
    for bar in bars.values():
        bar.close()
    report_files.write(folder, done.report, done.measurements, done.losses)
    row = done.report["models"]["advunlearn"]
    scores = {"asr": row["asr"], "utility": row["utility"]}
    metadata = recipe_metadata(model, concept, row["config"], scores=scores)
    save_encoder(folder / "encoder.safetensors", done.results["advunlearn"].encoder, metadata)
    files = f"{folder / 'report.html'}, {folder / 'report.json'} and {folder / 'encoder.safetensors'}"
    finish(args, done.report, f"{report_files.table(done.report)}\nwrote {files}")
