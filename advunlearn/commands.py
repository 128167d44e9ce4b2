"""What each command does. Results go to files and, with --json, to stdout; progress goes to stderr."""

from __future__ import annotations

import functools
import json
import pathlib
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch

from . import presets, released, retain
from . import report as report_files
from .advice import fitting, sentence
from .checkpoint import Checkpoints
from .cli import settings
from .config import (
    DEMO_BANK,
    DEMO_BUDGET,
    DEMO_TRAIN,
    AttackConfig,
    BankConfig,
    ConceptConfig,
    EvaluateConfig,
    TrainConfig,
)
from .denoisers import DiffusersDenoiser
from .errors import AdvUnlearnError, TrainingDiverged
from .estimate import Plan, estimate
from .evaluation import pictures
from .evaluation.cases import retain_prompts
from .evaluation.evaluate import Evaluator, Subject
from .events import Progress
from .formats import read_encoder, save_encoder
from .identify import layer_count
from .inputs import command_line, encoder_of, estimated_device, lines_of, load_judge, load_model, out_folder
from .models import TextToImage
from .progress import Bar
from .recipes import BASELINES, RECIPES, empty_report, recipe_metadata, study
from .sampling import ddim_sample
from .skeleton import skeleton
from .trainer import train

T = TypeVar("T")


def finish(args: Namespace, result: Mapping[str, Any], text: str) -> None:
    """Print the result: JSON when asked for, else text."""
    sys.stdout.write((json.dumps(result) if args.json else text) + "\n")


def train_command(args: Namespace) -> None:
    """Train one encoder (or the UNet, for the baseline) and save it with its recipe."""

    def chosen(config: type[T]) -> T:
        return settings(config, args, **presets.of(args.preset, config))

    concept, config, attack, bank = chosen(ConceptConfig), chosen(TrainConfig), chosen(AttackConfig), chosen(BankConfig)
    model, folder = load_model(args), out_folder(args)
    prompts = retain.read(args.retain) if args.retain else _retained(args, concept)
    if args.checkpoint_every < 1:
        raise AdvUnlearnError(f"--checkpoint-every is {args.checkpoint_every}; it must be at least 1")
    bar, keep = Bar(config.mode), Checkpoints(folder, args.checkpoint_every)
    try:
        result = train(
            model, concept, attack, config, bank, prompts, bar.training, checkpoints=keep, resume=args.resume
        )
    except TrainingDiverged as error:
        save_encoder(folder / "last-good.safetensors", error.result.encoder, {"advunlearn.error": str(error)})
        raise
    finally:
        bar.close()
    configs = {c: v.to_dict() for c, v in (("concept", concept), ("train", config), ("attack", attack), ("bank", bank))}
    report_files.write_json(
        folder / "train.json", {"config": configs, "losses": result.losses, "command": command_line()}
    )
    if isinstance(result.denoiser, DiffusersDenoiser) and config.mode == "esd_unet":
        result.denoiser.unet.save_pretrained(folder / "unet")
        path = folder / "unet"
    else:
        path = save_encoder(folder / "encoder.safetensors", result.encoder, recipe_metadata(model, concept, configs))
    last = result.losses[-1]
    text = f"{path}: {config.mode} on {concept.concept!r}, {result.iterations} iterations, last loss {last['loss']:.4f}"
    finish(args, {"file": str(path), "iterations": result.iterations, "losses": last, "config": configs}, text)


def _retained(args: Namespace, concept: ConceptConfig) -> list[str]:
    """Return the shipped prompts that a model is to keep: what the miniature can draw, or COCO's objects."""
    if args.model == "miniature":
        return retain_prompts(concept)
    return retain.without(retain.shipped(), concept.concept)


def estimate_command(args: Namespace) -> None:
    """Say what a run takes, and which settings fit into common devices."""
    concept, device = settings(ConceptConfig, args), estimated_device(args)
    prompts = _retained(args, concept)
    model = functools.cache(lambda dtype: skeleton(args.model, device, getattr(torch, dtype)))
    plan = Plan(
        concept=concept, attack=settings(AttackConfig, args), train=settings(TrainConfig, args),
        bank=settings(BankConfig, args), dtype=args.dtype,
        resolution=args.resolution or model(args.dtype).denoiser.latent_shape[-1] * 8,
    )  # fmt: skip
    measure = functools.cache(lambda plan: estimate(model(plan.dtype), plan, prompts, device))
    found = measure(plan)
    cards = {f"{size} GB": sentence(plan, advice) for size, advice in fitting(measure, plan).items()}
    rows = "".join(f"\n  {card:>5}: {advice}" for card, advice in cards.items())
    finish(args, found.to_dict() | {"fits": cards}, f"{found.text()}\nwith a tenth to spare on a device of{rows}")


def _measuring(name: str) -> tuple[Bar, Callable[[str, int, int], None]]:
    bar = Bar(name)
    return bar, lambda what, done, total: bar.update(what, done, total)


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
        bars[name], follow = _measuring(name)
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


def _evaluator(args: Namespace) -> tuple[TextToImage, Evaluator]:
    concept, config = settings(ConceptConfig, args), settings(EvaluateConfig, args)
    prompts = lines_of(args.prompts, "prompt")
    retained = lines_of(getattr(args, "retained", None), '"prompt | label"')
    model, judge = load_model(args), load_judge(args)
    return model, Evaluator(model, judge, concept, config, prompts=prompts, retained=retained)


def evaluate(args: Namespace) -> None:
    """Measure the original model and encoder files at one budget."""
    model, evaluator = _evaluator(args)
    subjects = {"original": evaluator.original}
    for path in dict.fromkeys(args.encoders):
        stem = pathlib.Path(path).stem
        name = pathlib.Path(path).resolve().parent.name if stem == "encoder" else stem
        subjects[name if name not in subjects else path] = Subject(encoder_of(path, model), model.denoiser)
    folder, measured = out_folder(args), {}
    report = empty_report(evaluator.concept, evaluator.config, command_line()) | evaluator.described()
    for name, subject in subjects.items():
        bar, evaluator.on_progress = _measuring(name)
        measured[name] = evaluator.measure(subject)
        bar.close()
        report["models"][name] = measured[name].to_dict() | {"seconds": 0.0, "config": {}}
    report_files.write(folder, report, measured, {})
    finish(args, report, f"{report_files.table(report)}\nwrote {folder / 'report.html'} and {folder / 'report.json'}")


def attack(args: Namespace) -> None:
    """Attack one encoder; write what was found."""
    model, evaluator = _evaluator(args)
    subject, folder = Subject(encoder_of(args.encoder, model), model.denoiser), out_folder(args)
    bar, evaluator.on_progress = _measuring(args.method)
    measured = evaluator.measure(subject, (args.method,), utility=False)
    bar.close()
    about = {"concept": evaluator.concept.to_dict(), "config": evaluator.config.to_dict()} | evaluator.described()
    result = measured.to_dict() | about
    report_files.write_json(folder / "attack.json", result)
    for what, images in measured.pictures.items():
        (folder / f"{what}.png").write_bytes(pictures.png(pictures.grid(images, 4), 2))
    hit, before = measured.asr[args.method], measured.asr["clean"]
    prompts = "".join(f"\n  {p['prompt']}" for p in measured.prompts.get(args.method, [])[:10])
    finish(args, result, f"{args.method}: {hit['success']} of {hit['total']} (without attack {before['success']}); "
                         f"wrote {folder / 'attack.json'}{prompts}")  # fmt: skip


def sample(args: Namespace) -> None:
    """Draw pictures, one row a prompt."""
    if args.count < 1:
        raise AdvUnlearnError(f"--count is {args.count}; it must be at least 1")
    path = pathlib.Path(args.out)
    if path.is_dir():
        raise AdvUnlearnError(f"--out {args.out!r} is a folder; give the name of a PNG file")
    path.parent.mkdir(parents=True, exist_ok=True)
    config, model = settings(EvaluateConfig, args), load_model(args)
    encoder = encoder_of(args.encoder, model)
    generator, count = torch.Generator().manual_seed(config.seed), args.count
    noise = torch.randn(count * len(args.prompts), *model.denoiser.latent_shape, generator=generator)
    context = model.encode([p for p in args.prompts for _ in range(count)], encoder)
    latents = ddim_sample(
        model.denoiser, context, model.encode([""], encoder), noise.to(model.denoiser.device),
        config.sampling_steps, config.guidance_scale,
    )  # fmt: skip
    path.write_bytes(pictures.png(pictures.grid(model.decode(latents), count), 2))
    finish(args, {"file": str(path), "prompts": args.prompts, "seed": config.seed}, f"wrote {path}")


def miniature(args: Namespace) -> None:
    """Write the widened miniature."""
    from .miniature import checkpoint

    path = pathlib.Path(args.to)
    if path.suffix != ".safetensors":
        raise AdvUnlearnError(f"--to is {args.to!r}; give a name that ends in .safetensors")
    checkpoint.write(path)
    finish(args, {"file": str(path)}, f"wrote {path}: it loads wherever a Stable Diffusion 1.5 checkpoint does")


def info(args: Namespace) -> None:
    """Say what an encoder file is."""
    tensors, metadata = read_encoder(args.file)
    layers = layer_count(tensors)
    table = next((v for k, v in tensors.items() if k.endswith("token_embedding.weight")), None)
    if table is None:
        raise AdvUnlearnError(f"{args.file} has no token embedding table: it is not a whole text encoder")
    vocabulary, width = table.shape
    facts = {"file": args.file, "layers": layers, "width": width, "vocabulary": vocabulary, "tensors": len(tensors)}
    recipe = {k.removeprefix("advunlearn."): _parsed(v) for k, v in sorted(metadata.items())}
    lines = [f"{args.file}: CLIP text encoder, {layers} layers of {width}, {vocabulary} tokens"]
    lines += [f"  {k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in recipe.items()]
    finish(args, facts | {"metadata": recipe}, "\n".join(lines))


def fetch(args: Namespace) -> None:
    """Fetch a released encoder."""
    bar = Bar(args.name)
    try:
        path = released.fetch(args.name, args.to, lambda done, total: bar.update("bytes", done, total))
    finally:
        bar.close()
    finish(args, {"file": str(path)}, f"{path}: give it to --encoder, or put its folder into models/text_encoders")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "demo": demo, "train": train_command, "estimate": estimate_command, "attack": attack, "evaluate": evaluate,
    "sample": sample, "info": info, "miniature": miniature, "fetch": fetch,
}  # fmt: skip
