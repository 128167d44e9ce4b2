"""`advunlearn demo`: train the baselines and AdvUnlearn on the miniature, attack all of them, write a report."""

from __future__ import annotations

import pathlib
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...config.concept import ConceptConfig
from ...config.evaluation import DEMO_BANK, DEMO_BUDGET, DEMO_TRAIN, EvaluateConfig
from ...config.io import ModelConfig
from ...config.training import BankConfig, RunConfig, TrainConfig
from ...errors import AdvUnlearnError
from ...evaluation.evaluator import Evaluator, Measurement, OnProgress, Subject
from ...files import JsonDict
from ...formats.text_encoders import save_encoder
from ...miniature.captions import retain_prompts
from ...models.ddim import ddim_sample
from ...models.loading import TextToImage
from ...reporting import images, report
from ...training.bank import make_banks
from ...training.events import Progress, TrainResult, report_filling
from ...training.recipe import recipe_metadata
from ...training.trainer import train
from ..flags import settings
from ..folder_lock import lock_folder
from ..inputs import command_line, load_judge, load_model, make_out_folder
from ..progress_bar import ProgressBar
from .evaluate import empty_report, make_progress
from .output import print_result

# Chosen on the miniature; docs/lab-notes/results.md has the measurements.
RECIPES: dict[str, RunConfig] = {
    "esd": RunConfig(train=TrainConfig(mode="esd_unet", iterations=200)),
    "esd_text": RunConfig(train=TrainConfig(mode="esd")),
    "advunlearn": RunConfig(),
    "advunlearn_no_retain": RunConfig(train=TrainConfig(retain_weight=0.0)),
}
BASELINES = ("esd", "esd_text", "advunlearn")
DEMO_IMAGES = 6  # of each prompt, before training

TrainCallback = Callable[[str, Progress], None]  # called with the name of the run


@dataclass
class Study:
    """The result of training and evaluating several runs, by their names."""

    report: JsonDict
    measurements: dict[str, Measurement]
    results: dict[str, TrainResult]

    @property
    def losses(self) -> dict[str, list[dict[str, float]]]:
        """The losses of every iteration."""
        return {name: result.losses for name, result in self.results.items()}


def run(args: Namespace) -> None:
    """Run the demo in its output folder, which no other run may use meanwhile."""
    model_config = settings(ModelConfig, args)
    if model_config.model != "miniature":
        raise AdvUnlearnError("demo runs on the miniature; use train and evaluate for other models")
    concept, config = settings(ConceptConfig, args), settings(EvaluateConfig, args, **DEMO_BUDGET)
    folder, model = make_out_folder(args), load_model(model_config)
    evaluator = Evaluator(model, load_judge(args), concept, config)  # first: it refuses what its judge does not know
    with lock_folder(folder):
        run_demo(args, evaluator, folder)


def run_demo(args: Namespace, evaluator: Evaluator, folder: pathlib.Path) -> None:
    """Draw, train, attack and evaluate; write the report and the robust encoder."""
    model, concept, config = evaluator.model, evaluator.concept, evaluator.config
    runs = make_runs(BASELINES, concept, BankConfig(**DEMO_BANK), **DEMO_TRAIN, seed=args.seed)
    file = folder / "original.png"
    file.write_bytes(images.encode_image(images.grid(draw_original(model, concept, config), DEMO_IMAGES), ".png", 4))
    sys.stderr.write(
        f"{file} shows what the model generates before training, for {concept.prompts[0]!r} and for a prompt that must "
        f"not change.\nNow: train {', '.join(runs)}, then attack each of them and the original model. This takes about "
        "five minutes on two CPU cores.\n"
    )
    bars = ProgressBars()
    done = study(
        evaluator,
        runs,
        command=command_line(),
        on_train=bars.show_training,
        on_measure=bars.start_measuring,
    )
    bars.close()
    report.write_report(folder, done.report, done.measurements, done.losses)
    row = done.report["models"]["advunlearn"]
    scores = {"asr": row["asr"], "utility": row["utility"]}
    metadata = recipe_metadata(model, RunConfig.from_dict(row["config"]), scores=scores)
    save_encoder(folder / "encoder.safetensors", done.results["advunlearn"].encoder, metadata)
    files = f"{folder / 'report.html'}, {folder / 'report.json'} and {folder / 'encoder.safetensors'}"
    print_result(args, done.report, f"{report.format_table(done.report)}\nwrote {files}")


def draw_original(model: TextToImage, concept: ConceptConfig, config: EvaluateConfig) -> Tensor:
    """Generate images (2 * DEMO_IMAGES, 3, H, W) of the concept and of a retained prompt with the original model."""
    prompts = [concept.prompts[0], retain_prompts(concept.names, concept.kind)[0]]
    conditioning = model.encode([prompt for prompt in prompts for _ in range(DEMO_IMAGES)])
    noise = torch.randn(len(conditioning), *model.denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    noise = noise.to(model.denoiser.device)
    steps, scale = config.sampling_steps, config.guidance_scale
    return model.decode(ddim_sample(model.denoiser, conditioning, model.encode([""]), noise, steps, scale))


class ProgressBars:
    """The progress bars of a study, one per run."""

    def __init__(self) -> None:
        self.bars: dict[str, ProgressBar] = {}

    def show_training(self, name: str, progress: Progress) -> None:
        """Show the training of a run."""
        self.bars.setdefault(name, ProgressBar(name)).show_training(progress)

    def start_measuring(self, name: str) -> OnProgress:
        """Return the callback that shows an evaluation."""
        self.close()
        self.bars[name], follow = make_progress(name)
        return follow

    def close(self) -> None:
        """Remove all bars."""
        for bar in self.bars.values():
            bar.close()


def make_runs(
    names: Sequence[str], concept: ConceptConfig, bank: BankConfig, **changes: object
) -> dict[str, RunConfig]:
    """Return the named recipes for a concept, with a bank and with some training settings changed."""
    recipes = {name: replace(RECIPES[name], concept=concept, bank=bank) for name in names}
    return {name: recipe.replace(train=changes) for name, recipe in recipes.items()}


def study(
    evaluator: Evaluator,
    runs: Mapping[str, RunConfig],
    *,
    original: bool = True,
    command: str = "",
    on_train: TrainCallback | None = None,
    on_measure: Callable[[str], OnProgress] | None = None,
) -> Study:
    """Train several runs and evaluate each result at the same budget.

    Args:
        evaluator: measures the original model and all results; made first, because it refuses a concept that its judge
            does not know.
        runs: the settings of each run; all have the same concept, bank and seed.
        original: whether to evaluate the original model too.
        command: the command line, for the report.
        on_train: progress of training.
        on_measure: called with a name before its evaluation; returns the callback for its progress.
    """
    trained = train_runs(evaluator.model, runs, on_train)
    out = Study(empty_report(evaluator.concept, evaluator.config, command), {}, {})
    subjects = {"original": evaluator.original} if original else {}
    for name, (result, _) in trained.items():
        out.results[name] = result
        subjects[name] = Subject(result.encoder, result.denoiser)
    for name, subject in subjects.items():
        if on_measure is not None:
            evaluator.on_progress = on_measure(name)
        out.measurements[name] = evaluator.measure(subject)
        seconds = round(trained[name][1], 1) if name in trained else 0.0
        config = runs[name].to_dict() if name in trained else {}
        out.report["models"][name] = out.measurements[name].to_row() | {"seconds": seconds, "config": config}
    return out


def train_runs(
    model: TextToImage, runs: Mapping[str, RunConfig], callback: TrainCallback | None = None
) -> dict[str, tuple[TrainResult, float]]:
    """Train several runs that draw from the same banks; return each result and its seconds without filling the banks.

    All runs have the concept, bank and seed of the first; the retained prompts are the miniature's.
    """
    banks = None
    results = {}
    for name, run in runs.items():

        def report_progress(progress: Progress, name: str = name) -> None:
            if callback is not None:
                callback(name, progress)

        prompts = retain_prompts(run.concept.names, run.concept.kind)
        if banks is None:
            generator = torch.Generator().manual_seed(run.train.seed)
            banks = make_banks(model, run, prompts, generator, report=report_filling(report_progress))
        start = time.perf_counter()
        result = train(model, run, prompts, callback=report_progress, banks=banks)
        results[name] = (result, time.perf_counter() - start)
    return results
