"""`advunlearn train`: train a robust text encoder, or for comparison a UNet."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ...config.concept import ConceptConfig
from ...config.io import ModelConfig, OutputConfig, RetainConfig
from ...config.lists import split_list
from ...config.training import RunConfig
from ...errors import AdvUnlearnError, TrainingDiverged
from ...files import DONE, STATE
from ...memory.estimate import Estimator
from ...memory.fit import choose_plan
from ...memory.plan import Plan
from ...models.loading import TextToImage
from ...models.placement import best_device
from ...prompts import retain
from ...prompts.scope import Scope, make_scope
from ...reporting.snapshots import Snapshots
from ...reporting.training_samples import Samples
from ...training.checkpoint import Checkpoints
from ...training.distributed import Processes, joined_processes
from ...training.events import Progress, TrainResult
from ...training.guard_rails import find_warnings
from ...training.recipe import environment, recipe_metadata
from ...training.trainer import train
from ..config_file import NAME as CONFIG
from ..config_file import is_miniature, make_content
from ..flags import run_settings, settings
from ..folder_lock import lock_folder
from ..inputs import command_line, load_model, make_out_folder, open_prompts, print_note
from ..progress_bar import ProgressBar
from ..run_folder import LOG, RunFolder
from ..snapshots import make_snapshots
from .output import print_result
from .save import check_single_file, save_single_file, save_trained


def run(args: Namespace) -> None:
    """Train and save what was trained with its recipe; of several processes only the main one writes files."""
    with joined_processes() as processes, contextlib.ExitStack() as stack:
        resume = check_resume(args)
        run, output = run_settings(args), settings(OutputConfig, args)
        model_config = settings(ModelConfig, args)
        model_config = replace(model_config, device=processes.device(model_config.device or best_device()))
        model = load_model(model_config)
        retain_inputs = read_retain_inputs(settings(RetainConfig, args), model_config.model, processes.main)
        long_prompts = "cut" if run.train.mode == "official" else model.long_prompts
        scope = make_scope(run.concept, *retain_inputs, model.tokenizer, long_prompts)
        prompts = scope.retained
        if output.single_file:
            check_single_file(model)
        run = fit_memory(model, model_config, run, prompts)
        work = functools.partial(train, model, run, prompts, resume=resume, processes=processes)
        if not processes.main:
            work(checkpoints=Checkpoints(args.out, output.checkpoint_every))
            return
        folder = make_out_folder(args)
        stack.enter_context(lock_folder(folder))
        model_config = replace(model_config, device=str(model.denoiser.device))
        content = make_content(
            run, (model_config, settings(RetainConfig, args), output), describe_run(model, prompts, processes)
        )
        samples = Samples(model, [run.concept.prompts[0], *prompts[:1]]) if output.sample_every else None
        run_folder = RunFolder(folder, output, content, prompts, samples, resume)
        snapshots = make_snapshots(model, run, prompts, output, folder, resume)
        describe_settings(args, model, run, model_config.model)  # after everything that may refuse the run
        print_note(scope.describe())
        result = train_in_folder(work, run_folder, run, snapshots)
        save(args, run_folder, model, run, result, scope)
        if snapshots:
            snapshots.add(result.iterations, "encoder.safetensors", result.encoder, result.denoiser)
            print_note(snapshots.describe())


def train_in_folder(
    work: Callable[..., TrainResult], run_folder: RunFolder, run: RunConfig, snapshots: Snapshots | None
) -> TrainResult:
    """Train with a progress bar, and keep the run folder up to date.

    Raises TrainingDiverged, after the last good weights are saved, for a loss that is not finite.
    """
    bar = ProgressBar(run.train.mode)

    def follow(progress: Progress) -> None:
        bar.show_training(progress)
        run_folder(progress)
        if snapshots:
            snapshots(progress)

    try:
        with run_folder:
            return work(callback=follow, checkpoints=run_folder.checkpoints)
    except TrainingDiverged as error:
        about = {"advunlearn.error": str(error)}
        # In float32: weights of a run that diverges may be too large for float16.
        save_trained(run_folder.folder, error.result, run.train, about, "float32", last_good=True)
        raise
    finally:
        bar.close()


def save(
    args: Namespace, run_folder: RunFolder, model: TextToImage, run: RunConfig, result: TrainResult, scope: Scope
) -> None:
    """Save what was trained, complete the run folder, and print the result."""
    config, folder = run.to_dict(), run_folder.folder
    metadata = recipe_metadata(model, run)
    path = save_trained(folder, result, run.train, metadata, run_folder.output.encoder_dtype)
    if run_folder.output.single_file:
        save_single_file(folder, model, result, metadata)
    about = scope.to_dict() | {"command": command_line()}
    run_folder.finish(result.losses, {"config": config, "losses": result.losses} | about)
    last = result.losses[-1]
    text = (
        f"{path}: {run.train.mode} on {run.concept.name!r}, {result.iterations} iterations, "
        f"last loss {last['loss']:.4f}"
    )
    row = {"file": str(path), "iterations": result.iterations, "losses": last, "config": config}
    print_result(args, row | scope.to_dict(), text)


def check_resume(args: Namespace) -> bool:
    """Return whether a run resumes a saved state; one that was interrupted before its first state starts again.

    Raises AdvUnlearnError for --resume if there was no run, or if its state is missing.
    """
    folder = pathlib.Path(args.out)
    if not args.resume or Checkpoints(folder).exists():
        return args.resume
    if not (folder / CONFIG).is_file():
        raise AdvUnlearnError(f"{folder} holds no run to resume; leave --resume out, or give another --out")
    log = folder / LOG
    if (folder / DONE).is_file() or (log.is_file() and log.stat().st_size):
        raise AdvUnlearnError(
            f"{folder} holds a run whose {STATE} is missing; leave --resume out to replace it by a new run, or give "
            "another --out"
        )
    return False


def describe_settings(args: Namespace, model: TextToImage, run: RunConfig, name: str) -> None:
    """Print the preset, all settings that differ from the defaults, and warnings about unusual ones."""
    sections = {section: (values, RunConfig().to_dict()[section]) for section, values in run.to_dict().items()}
    changed = [
        f"{section}.{key} {value}"
        for section, (values, defaults) in sections.items()
        for key, value in values.items()
        if value != defaults[key]
    ]
    sys.stderr.write(f"preset {args.preset}; settings that differ from the defaults: {', '.join(changed) or 'none'}\n")
    small = is_miniature(name)
    retain_set = retain.resolve_retain_set(settings(RetainConfig, args).retain_set, small)
    for warning in find_warnings(model, run, retain_set, small):
        sys.stderr.write(f"warning: {warning}\n")


def fit_memory(model: TextToImage, config: ModelConfig, run: RunConfig, prompts: Sequence[str]) -> RunConfig:
    """Return the run with the micro-batch that the setting `memory` chooses for the model's device."""
    device = model.denoiser.device
    plan = Plan(run=run, resolution=model.denoiser.latent_shape[-1] * 8, dtype=config.dtype)
    free = None
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device)  # by the loaded model, which the estimate counts too
        free = torch.cuda.mem_get_info(device)[0] + reserved
    measure = functools.cache(Estimator(model, prompts, device))
    chosen = choose_plan(config.memory, measure, plan, free)
    if changes := chosen.changes(plan):
        settings = ", ".join(f"{name} {str(value).lower()}" for name, value in changes.items())
        sys.stderr.write(f"memory {config.memory}: {settings}\n")
    return chosen.run


def describe_run(model: TextToImage, prompts: Sequence[str], processes: Processes) -> dict[str, object]:
    """Return what a run depends on besides its settings."""
    return {
        "environment": environment(),
        "base_sha256": model.base_hash(),
        "retain_prompts": len(prompts),
        "command": command_line(),
        "processes": processes.count,
    }


def load_retain_prompts(config: RetainConfig, concept: ConceptConfig, model: str) -> list[str]:
    """Return the retained prompts of a run: the user's own lines, then the chosen set."""
    return retain.make_retain_prompts(concept, *read_retain_inputs(config, model))


def read_retain_inputs(
    config: RetainConfig, model: str, verbose: bool = True
) -> tuple[str, list[str], list[str] | None]:
    """Return the retain set, the user's own lines, and phrases to leave out; verbose: describe the file on stderr."""
    retain_set = retain.resolve_retain_set(config.retain_set, is_miniature(model))
    own = open_prompts(config.retain, "retained prompt", config.prompt_column, verbose) if config.retain else None
    left_out = None if config.retain_without == "auto" else split_list(config.retain_without)
    return retain_set, own.prompts if own else [], left_out
