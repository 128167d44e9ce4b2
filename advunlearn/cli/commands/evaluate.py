"""`advunlearn evaluate`: attack success rate on the concept, utility on everything else."""

from __future__ import annotations

import pathlib
from argparse import Namespace
from collections.abc import Callable

from ...attacks.registry import ATTACKS
from ...config.attacks import choose_attacks
from ...config.concept import ConceptConfig
from ...config.evaluation import EvaluateConfig
from ...config.io import ModelConfig
from ...evaluation.evaluator import Evaluator, Subject
from ...evaluation.image_metrics import ImageMetrics
from ...evaluation.inputs import EvaluationInputs
from ...evaluation.resume import EvaluationCache, describe_evaluation
from ...evaluation.target_images import load_target_images
from ...evaluation.user_prompts import UserPrompt, parse_user_prompts
from ...files import JsonDict
from ...models.loading import TextToImage
from ...reporting import images, report
from ...training.recipe import environment
from ..flags import given_settings, settings
from ..folder_lock import lock_folder
from ..inputs import (
    command_line,
    load_judge,
    load_model,
    load_trained_encoder,
    load_trained_unet,
    make_out_folder,
    open_prompts,
    print_note,
    read_recipe,
)
from ..progress_bar import ProgressBar
from .output import print_result

COMMON_NAMES = ("", "encoder", "unet", "checkpoint", "clip_l", "clip_g")  # such files are called after their folder


def run(args: Namespace) -> None:
    """Evaluate the original model, text encoders and UNets at one budget."""
    model, evaluator = make_evaluator(args)
    subjects, recipes = load_subjects(args, model, evaluator)
    folder = make_out_folder(args)
    with lock_folder(folder):
        evaluate(args, evaluator, subjects, recipes, folder)


def evaluate(
    args: Namespace,
    evaluator: Evaluator,
    subjects: dict[str, Subject],
    recipes: dict[str, dict[str, object]],
    folder: pathlib.Path,
) -> None:
    """Evaluate all subjects, and write and print the report."""
    attacks = choose_attacks(args.attacks, evaluator.find_missing)
    caches = {
        name: EvaluationCache(folder, name, describe_evaluation(evaluator, one)) for name, one in subjects.items()
    }
    finished = {name: cache.load() for name, cache in caches.items()} if args.resume else {}
    result = empty_report(evaluator.concept, evaluator.config, command_line()) | evaluator.describe()
    measured = {}
    for name, subject in subjects.items():
        bar, evaluator.on_progress = make_progress(name)
        if args.pictures:
            evaluator.save_images = images.make_image_saver(folder, caches[name].label)
        measured[name] = evaluator.measure(subject, attacks, resumed=finished.get(name), on_part=caches[name].save)
        bar.close()
        result["models"][name] = measured[name].to_row() | recipes[name]
    report.write_report(folder, result, measured, {})
    files = f"{folder / 'report.html'} and {folder / 'report.json'}"
    print_result(args, result, f"{report.format_table(result)}\nwrote {files}")


def make_evaluator(args: Namespace, **budget: object) -> tuple[TextToImage, Evaluator]:
    """Make the evaluator of a command, with the model it measures; `budget` has the command's own defaults."""
    concept, config = settings(ConceptConfig, args), settings(EvaluateConfig, args, **budget)
    prompts, retained, synonyms = read_inputs(args)
    model = load_model(settings(ModelConfig, args))
    judge = load_judge(args)
    inputs = EvaluationInputs(
        prompts=prompts,
        retained=retained,
        synonyms=synonyms,
        attack_settings={name: given_settings(kind.config_class, args) for name, kind in ATTACKS.items()},
        image_metrics=load_image_metrics(args, str(model.denoiser.device)),
        target_images=load_target_images(args.images, model) if args.images else None,
    )
    evaluator = Evaluator(model, judge, concept, config, inputs)
    if warning := evaluator.describe_long_prompts():
        print_note(warning)
    return model, evaluator


def read_inputs(args: Namespace) -> tuple[list[UserPrompt], list[UserPrompt], list[str]]:
    """Read the user's prompts, retained prompts and synonyms; those without a file are empty."""
    column = args.prompt_column
    prompts = parse_user_prompts(open_prompts(args.prompts, "prompt", column)) if args.prompts else []
    retained = []
    if args.retained:
        retained = parse_user_prompts(open_prompts(args.retained, '"prompt | label"', column), labels=True)
    synonyms = open_prompts(args.synonyms, "name of the concept", column).prompts if args.synonyms else []
    return prompts, retained, synonyms


def empty_report(concept: ConceptConfig, config: EvaluateConfig, command: str) -> JsonDict:
    """Return a report to which the measured models are added."""
    return {
        "concept": ", ".join(concept.names),
        "kind": concept.kind,
        "models": {},
        "budget": config.to_dict(),
        "environment": environment(),
        "command": command,
    }


def load_image_metrics(args: Namespace, device: str) -> ImageMetrics | None:
    """Load the networks of the image metrics; None if no metric was chosen."""
    files = {"clip": args.clip_score, "inception": args.fid, "lpips": args.lpips}
    return ImageMetrics(**files, device=device) if any(files.values()) else None


def load_subjects(
    args: Namespace, model: TextToImage, evaluator: Evaluator
) -> tuple[dict[str, Subject], dict[str, dict[str, object]]]:
    """Load what is evaluated; return it and its recipes by the names in the report."""
    subjects = {"original": evaluator.original}
    recipes: dict[str, dict[str, object]] = {"original": {"seconds": 0.0, "config": {}}}
    for path in dict.fromkeys([*args.files, *args.encoders]):
        name = report_name(path, subjects)
        subjects[name] = Subject(load_trained_encoder(path, model), model.denoiser)
        recipes[name] = read_recipe(path)
    for path in dict.fromkeys(args.unet):
        name = report_name(path, subjects)
        subjects[name] = Subject(model.text_encoder, load_trained_unet(path, model))
        recipes[name] = read_recipe(path)
    return subjects, recipes


def report_name(path: str, taken: dict[str, Subject]) -> str:
    """Return the name of a file in the report: its stem, its folder's name, or its path if that is taken."""
    stem = pathlib.Path(path).stem
    name = pathlib.Path(path).resolve().parent.name if stem in COMMON_NAMES else stem
    return path if name in taken else name


def make_progress(name: str) -> tuple[ProgressBar, Callable[[str, int, int], None]]:
    """Return a progress bar and the callback of an evaluator that moves it."""
    bar = ProgressBar(name)
    return bar, lambda phase, done, total: bar.update(phase, done, total)
