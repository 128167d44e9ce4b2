"""Commands that train, or say what training takes."""

from __future__ import annotations

import functools
import pathlib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...config.adversary import AdversaryConfig
from ...config.concept import ConceptConfig
from ...config.evaluation import DEMO_BANK, DEMO_BUDGET, DEMO_TRAIN, EvaluateConfig
from ...config.training import BankConfig, RunConfig, TrainConfig
from ...errors import AdvUnlearnError, TrainingDiverged
from ...evaluation.cases import retain_prompts
from ...files import DONE, STATE
from ...formats.text_encoders import save_encoder
from ...memory.estimate import estimate
from ...memory.fit import fitting, sentence
from ...memory.plan import Plan
from ...models.loading import TextToImage, best_device
from ...models.meta_model import skeleton
from ...prompts import retain
from ...reporting import report as report_files
from ...reporting.training_samples import Samples
from ...training.checkpoint import Checkpoints
from ...training.distributed import SINGLE, Processes
from ...training.events import Progress
from ...training.recipe import environment, recipe_metadata
from ...training.trainer import train as run
from ..config_file import NAME as CONFIG
from ..config_file import saved
from ..demo import BASELINES, RECIPES, study
from ..flags import settings
from ..inputs import command_line, estimated_device, load_judge, load_model, out_folder
from ..progress_bar import Bar
from ..run_folder import LOG, RunFolder
from .common import finish, measuring
from .save import check_single_file, save_single_file, save_trained


def run_settings(args: Namespace) -> tuple[ConceptConfig, TrainConfig, AdversaryConfig, BankConfig]:
    """Return a run's settings."""
    concept, train = settings(ConceptConfig, args), settings(TrainConfig, args)
    return concept, train, settings(AdversaryConfig, args), settings(BankConfig, args)


def train_command(args: Namespace, processes: Processes = SINGLE) -> None:
    """Train one encoder, or the UNet, and save it with its recipe; of several processes the main one writes."""
    own, (concept, config, attack, bank) = settings(RunConfig, args), run_settings(args)
    resume = goes_on(args)
    own = replace(own, device=processes.device(own.device or best_device()))
    model, prompts = load_model(own), retained(own, concept)
    if own.single_file:
        check_single_file(model)
    work = functools.partial(run, model, concept, attack, config, bank, prompts, resume=resume, processes=processes)
    if not processes.main:
        work(checkpoints=Checkpoints(args.out, own.checkpoint_every))
        return
    folder = out_folder(args)
    configs = {c: v.to_dict() for c, v in (("concept", concept), ("train", config), ("attack", attack), ("bank", bank))}
    own = replace(own, device=str(model.denoiser.device))
    samples = Samples(model, [concept.prompts[0], *prompts[:1]]) if own.sample_every else None
    keep = RunFolder(folder, own, saved(own, configs, _about(model, prompts, processes)), prompts, samples, resume)
    bar = Bar(config.mode)

    def follow(progress: Progress) -> None:
        bar.training(progress)
        keep(progress)

    try:
        with keep:
            result = work(callback=follow, checkpoints=keep.checkpoints)
    except TrainingDiverged as error:
        save_trained(folder, error.result, config, {"advunlearn.error": str(error)}, last_good=True)
        raise
    finally:
        bar.close()
    metadata = recipe_metadata(model, concept, configs)
    path = save_trained(folder, result, config, metadata)
    if own.single_file:
        save_single_file(folder, model, result, metadata)
    keep.finish(result.losses, {"config": configs, "losses": result.losses, "command": command_line()})
    last = result.losses[-1]
    text = f"{path}: {config.mode} on {concept.concept!r}, {result.iterations} iterations, last loss {last['loss']:.4f}"
    finish(args, {"file": str(path), "iterations": result.iterations, "losses": last, "config": configs}, text)


def goes_on(args: Namespace) -> bool:
    """Return whether a run takes up a state; one that was interrupted before it had any begins, with its settings.

    Raises AdvUnlearnError for --resume where no run was, or where its state is gone.
    """
    folder = pathlib.Path(args.out)
    if not args.resume or Checkpoints(folder).exists():
        return args.resume
    if not (folder / CONFIG).is_file():
        raise AdvUnlearnError(f"{folder} holds no run to go on with; leave --resume out, or give another --out")
    log = folder / LOG
    if (folder / DONE).is_file() or (log.is_file() and log.stat().st_size):
        raise AdvUnlearnError(
            f"{folder} holds a run whose {STATE} is gone; leave --resume out to begin anew in its place, or give "
            "another --out"
        )
    return False


def _about(model: TextToImage, prompts: list[str], processes: Processes) -> dict[str, Any]:
    """Return what a run depends on beside its settings."""
    return {
        "environment": environment(),
        "base_sha256": model.base_hash(),
        "retain_prompts": len(prompts),
        "command": command_line(),
        "processes": processes.count,
    }


def retained(own: RunConfig, concept: ConceptConfig) -> list[str]:
    """Return the prompts that a model is to keep: a file's, what the miniature can draw, or objects by their names."""
    also = None if own.retain_without == "auto" else own.retain_without.split(",")
    name = own.retain_set
    if name == "auto":
        name = "miniature" if own.model == "miniature" else "coco"
    if not own.retain and name != "miniature":
        return retain.chosen(concept.names, name, also)
    prompts = retain.mixed(retain.read(own.retain)) if own.retain else retain_prompts(concept)
    return retain.without(prompts, also or ())


def estimate_command(args: Namespace) -> None:
    """Say what a run takes, and which settings fit into common devices."""
    own, (concept, train, attack, bank) = settings(RunConfig, args), run_settings(args)
    device, prompts = estimated_device(own), retained(own, concept)
    model = functools.cache(lambda dtype: skeleton(own.model, device, getattr(torch, dtype)))
    plan = Plan(
        concept=concept,
        attack=attack,
        train=train,
        bank=bank,
        dtype=own.dtype,
        resolution=args.resolution or model(own.dtype).denoiser.latent_shape[-1] * 8,
    )
    measure = functools.cache(lambda plan: estimate(model(plan.dtype), plan, prompts, device))
    found = measure(plan)
    cards = {f"{size} GB": sentence(plan, advice) for size, advice in fitting(measure, plan).items()}
    rows = "".join(f"\n  {card:>5}: {advice}" for card, advice in cards.items())
    finish(args, found.to_dict() | {"fits": cards}, f"{found.text()}\nwith a tenth to spare on a device of{rows}")


def demo(args: Namespace) -> None:
    """Train the baselines and AdvUnlearn, attack all of them, write the report and the robust encoder."""
    own, concept = settings(RunConfig, args), settings(ConceptConfig, args)
    if own.model != "miniature":
        raise AdvUnlearnError("demo runs on the miniature; use train and evaluate for other models")
    config = settings(EvaluateConfig, args, **DEMO_BUDGET)
    changes = DEMO_TRAIN | {"seed": args.seed}
    recipes = {k: replace(RECIPES[k], train=replace(RECIPES[k].train, **changes)) for k in BASELINES}
    model, judge, folder = load_model(own), load_judge(args), out_folder(args)
    bars: dict[str, Bar] = {}

    def on_train(name: str, progress: Progress) -> None:
        bars.setdefault(name, Bar(name)).training(progress)

    def on_measure(name: str) -> Callable[[str, int, int], None]:
        for bar in bars.values():
            bar.close()
        bars[name], follow = measuring(name)
        return follow

    done = study(
        model,
        judge,
        concept,
        recipes,
        BankConfig(**DEMO_BANK),
        config,
        seed=args.seed,
        command=command_line(),
        on_train=on_train,
        on_measure=on_measure,
    )
    for bar in bars.values():
        bar.close()
    report_files.write(folder, done.report, done.measurements, done.losses)
    row = done.report["models"]["advunlearn"]
    scores = {"asr": row["asr"], "utility": row["utility"]}
    metadata = recipe_metadata(model, concept, row["config"], scores=scores)
    save_encoder(folder / "encoder.safetensors", done.results["advunlearn"].encoder, metadata)
    files = f"{folder / 'report.html'}, {folder / 'report.json'} and {folder / 'encoder.safetensors'}"
    finish(args, done.report, f"{report_files.table(done.report)}\nwrote {files}")
