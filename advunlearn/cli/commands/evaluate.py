"""Commands that measure, attack and draw."""

from __future__ import annotations

import pathlib
from argparse import Namespace
from typing import Any

import torch
from safetensors.torch import save

from ...attacks.registry import ATTACKS
from ...config.attacks import chosen_attacks
from ...config.concept import ConceptConfig
from ...config.evaluation import EvaluateConfig
from ...config.presets import bundle
from ...config.training import RunConfig
from ...errors import AdvUnlearnError
from ...evaluation import target_images as own_images
from ...evaluation import user_prompts as asked
from ...evaluation.evaluator import Evaluator, Subject
from ...evaluation.image_metrics import Quality
from ...evaluation.resume import EvaluationCache, described
from ...files import write_atomic
from ...models.ddim import ddim_sample
from ...models.encoder_files import embedding_file, files_for_scores, write_scores
from ...models.loading import TextToImage
from ...reporting import images as pictures
from ...reporting import report as report_files
from ..demo import empty_report
from ..flags import given, settings
from ..inputs import command_line, encoder_of, lines_of, load_judge, load_model, out_folder, recipe_of, unet_of
from .common import finish, measuring


def _evaluator(args: Namespace) -> tuple[TextToImage, Evaluator]:
    concept, config = settings(ConceptConfig, args, **bundle(args.bundle)), settings(EvaluateConfig, args)
    prompts = asked.read(args.prompts, "prompt") if args.prompts else []
    kept = getattr(args, "retained", None)
    retained = asked.read(kept, '"prompt | label"', labels=True) if kept else []
    routes = lines_of(args.routes, "name of the concept")
    model, judge = load_model(settings(RunConfig, args)), load_judge(args)
    return model, Evaluator(
        model,
        judge,
        concept,
        config,
        prompts=prompts,
        retained=retained,
        routes=routes,
        quality=_quality(args, str(model.denoiser.device)),
        given={name: given(kind.config_class, args) for name, kind in ATTACKS.items()},
        images=own_images.load(args.images, model) if args.images else None,
    )


def _quality(args: Namespace, device: str) -> Quality | None:
    """Return the measures whose weights were given, or None."""
    files = {"clip": args.clip_score, "inception": args.fid, "lpips": args.lpips}
    return Quality(**files, device=device) if any(files.values()) else None


def evaluate(args: Namespace) -> None:
    """Measure the original model, encoder files and UNets at one budget."""
    model, evaluator = _evaluator(args)
    subjects, recipes = {"original": evaluator.original}, dict[str, Any]()
    encoders = dict.fromkeys([*args.files, *args.encoders])
    files = [(path, Subject(encoder_of(path, model), model.denoiser)) for path in encoders]
    files += [(path, Subject(model.text_encoder, unet_of(path, model))) for path in dict.fromkeys(args.unet)]
    for path, subject in files:
        stem = pathlib.Path(path).stem
        nameless = stem in ("", "encoder", "unet", "checkpoint", "clip_l", "clip_g")
        name = pathlib.Path(path).resolve().parent.name if nameless else stem
        name = name if name not in subjects else path
        subjects[name], recipes[name] = subject, recipe_of(path)
    told = {path: files_for_scores(path) for path in encoders} if args.write_scores else {}
    folder, measured = out_folder(args), {}
    report = empty_report(evaluator.concept, evaluator.config, command_line()) | evaluator.described()
    attacks = chosen_attacks(args.attacks, evaluator.lacking)
    kept = {name: EvaluationCache(folder, name, described(evaluator, subject)) for name, subject in subjects.items()}
    done = {name: own.load() for name, own in kept.items()} if args.resume else {}
    for name, subject in subjects.items():
        bar, evaluator.on_progress = measuring(name)
        if args.pictures:
            evaluator.on_pictures = pictures.keeper(folder, kept[name].label)
        measured[name] = evaluator.measure(subject, attacks, out=done.get(name), keep=kept[name].save)
        bar.close()
        report["models"][name] = measured[name].row() | recipes.get(name, {"seconds": 0.0, "config": {}})
    report_files.write(folder, report, measured, {})
    asked_for = {k: v for k, v in report.items() if k not in ("models", "environment", "command")}
    for name, path in zip(list(subjects)[1:], told, strict=False):
        row = report["models"][name]
        for file in told[path]:
            write_scores(file, asked_for | {"asr": row["asr"], "utility": row["utility"]})
    finish(args, report, f"{report_files.table(report)}\nwrote {folder / 'report.html'} and {folder / 'report.json'}")


def attack(args: Namespace) -> None:
    """Attack one encoder or UNet; write what was found."""
    model, evaluator = _evaluator(args)
    subject, folder = Subject(encoder_of(args.encoder, model), unet_of(args.unet, model)), out_folder(args)
    bar, evaluator.on_progress = measuring(args.method)
    measured = evaluator.measure(subject, (args.method,), utility=False)
    bar.close()
    about = {"concept": evaluator.concept.to_dict(), "config": evaluator.config.to_dict()} | evaluator.described()
    result = measured.row() | about
    report_files.write_json(folder / "attack.json", result)
    for what, images in measured.pictures.items():
        (folder / f"{what}.png").write_bytes(pictures.png(pictures.grid(images, 4), 2))
    embedding = measured.embeddings.get(args.method)
    if embedding is not None and not ATTACKS[args.method].discrete:
        write_atomic(folder / f"{args.method}.safetensors", save(embedding_file(embedding, model.text_encoder)))
    hit = measured.attacks[args.method]
    prompts = "".join(f"\n  {p['prompt']}" for p in measured.prompts.get(args.method, [])[:10])
    finish(
        args,
        result,
        f"{args.method}: {hit['sum']['success']} of {hit['sum']['total']} "
        f"(without attack {hit['without_attack']['success']}); "
        f"wrote {folder / 'attack.json'}{prompts}",
    )


def sample(args: Namespace) -> None:
    """Draw pictures, one row a prompt."""
    if args.count < 1:
        raise AdvUnlearnError(f"--count is {args.count}; it must be at least 1")
    path = pathlib.Path(args.out)
    if path.is_dir():
        raise AdvUnlearnError(f"--out {args.out!r} is a folder; give the name of a picture file")
    if path.suffix.lower() not in pictures.ENDINGS:
        raise AdvUnlearnError(f"--out {args.out!r}: give a name that ends in {', '.join(pictures.ENDINGS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    config, model = settings(EvaluateConfig, args), load_model(settings(RunConfig, args))
    encoder, denoiser = encoder_of(args.encoder, model), unet_of(args.unet, model)
    generator, count = torch.Generator().manual_seed(config.seed), args.count
    noise = torch.randn(count * len(args.prompts), *model.denoiser.latent_shape, generator=generator)
    context = model.encode([p for p in args.prompts for _ in range(count)], encoder)
    latents = ddim_sample(
        denoiser,
        context,
        model.encode([""], encoder),
        noise.to(model.denoiser.device),
        config.sampling_steps,
        config.guidance_scale,
    )
    path.write_bytes(pictures.encoded(pictures.grid(model.decode(latents), count), path.suffix.lower(), 2))
    finish(args, {"file": str(path), "prompts": args.prompts, "seed": config.seed}, f"wrote {path}")
