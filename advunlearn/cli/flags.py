"""The flags of the command line, made from the settings in `config` and `attack_config`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from ..config.adversary import AdversaryConfig
from ..config.attacks import ATTACK_NAMES, DEFAULT_ATTACKS, FLAGS
from ..config.base import choices
from ..config.concept import ConceptConfig
from ..config.evaluation import ClassifierConfig, CombinedConfig, EvaluateConfig, NudityConfig, ZeroShotConfig
from ..config.io import CONVERSIONS
from ..config.presets import BUNDLES, CUSTOM, PRESETS
from ..config.training import ENCODER_NAMES, BankConfig, RunConfig, TrainConfig

Config = TypeVar("Config")
UNET = "a trained UNet, a diffusers folder or a checkpoint (default: the model's own)"


def add_flags(
    parser: argparse.ArgumentParser,
    config: type,
    prefix: str = "",
    skip: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add a flag for every field of a settings class, with its help, choices and default (or the command's own)."""
    group = parser.add_argument_group(config.__name__.removesuffix("Config").lower() + " settings")
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        allowed, flag = choices(config, field.name), "--" + (prefix + field.name).replace("_", "-")
        if hints[field.name] is bool:
            group.add_argument(
                flag,
                dest=config.__name__ + "." + field.name,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=field.metadata["help"],
            )
            continue
        group.add_argument(
            flag,
            dest=config.__name__ + "." + field.name,
            type=str if allowed else hints[field.name],
            choices=allowed or None,
            default=argparse.SUPPRESS,
            metavar=None if allowed else hints[field.name].__name__.upper(),
            help=f"{field.metadata['help']} (default: {(defaults or {}).get(field.name, field.default)})",
        )


def given(config: type, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a class that were given as flags."""
    start = config.__name__ + "."
    return {k.removeprefix(start): v for k, v in vars(args).items() if k.startswith(start)}


def settings(config: type[Config], args: argparse.Namespace, **defaults: Any) -> Config:
    """Make a settings object from parsed flags; `defaults` are a command's own."""
    return config(**{**defaults, **given(config, args)})


def add_model(sub: argparse.ArgumentParser) -> None:
    """Add what says which model, where and how precisely."""
    own = ("model", "device", "dtype", "prediction_type")
    add_flags(sub, RunConfig, skip=[f.name for f in dataclasses.fields(RunConfig) if f.name not in own])


def add_run_settings(sub: argparse.ArgumentParser, skip: Sequence[str] = ()) -> None:
    """Add the settings of a training run, and the file that may hold them."""
    sub.set_defaults(parser=sub)
    sub.add_argument(
        "--config",
        metavar="FILE",
        help="settings from a .yaml or .json file, such as a run's config.json; flags that are given win",
    )
    add_flags(sub, RunConfig, skip=skip)
    for config, prefix in ((ConceptConfig, ""), (TrainConfig, ""), (AdversaryConfig, "attack-"), (BankConfig, "bank-")):
        add_flags(sub, config, prefix)
    sub.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default=CUSTOM,
        help="published settings for Stable Diffusion 1.x; flags that are given win (default: %(default)s, our own)",
    )
    add_bundle(sub)


def add_bundle(sub: argparse.ArgumentParser) -> None:
    """Add what names several concepts."""
    sub.add_argument("--bundle", choices=tuple(BUNDLES), default="", help="several concepts by one name")


def add_train(train: argparse.ArgumentParser) -> None:
    """Add the flags of `train`."""
    add_run_settings(train)
    train.add_argument("--resume", action="store_true", help="go on with the run whose state is in --out")
    train.add_argument(
        "--separately",
        action="store_true",
        help="one run for each concept, each in a folder of its own in --out; with --json one line for each",
    )


def add_files(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `info` and `convert`."""
    info = command("info", "say what a file is, and how it differs from a base", model="")
    info.add_argument("file", metavar="FILE")
    info.add_argument("--base", metavar="FILE|MODEL", help="compare its text encoders or its UNet with those there")
    convert = command("convert", "write a text encoder in another form, bit for bit", model="")
    convert.add_argument("file", metavar="IN", help="a file or folder that holds a CLIP text encoder")
    convert.add_argument("out", metavar="OUT", help="what to write: a .safetensors file, or for diffusers a folder")
    convert.add_argument(
        "--to",
        required=True,
        choices=tuple(CONVERSIONS),
        help="; ".join(f"{name}: {help}" for name, help in CONVERSIONS.items()),
    )
    convert.add_argument(
        "--base", metavar="FILE|MODEL", help="the encoder before training, or the checkpoint to put this one into"
    )
    convert.add_argument(
        "--part",
        choices=ENCODER_NAMES,
        default=ENCODER_NAMES[0],
        help="which text encoder, where IN is a checkpoint of Stable Diffusion XL (default: %(default)s)",
    )
    convert.add_argument("--rank", type=int, default=32, help="rank of a LoRA (default: %(default)s)")
    convert.add_argument("--overwrite", action="store_true", help="replace what is there")


def attack_name(text: str) -> str:
    """Return the name of an attack, or all; say of anything else what it may have been."""
    if text in (*ATTACK_NAMES, "all"):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is no attack; give all or some of {', '.join(ATTACK_NAMES)}, and encoder files before --attacks or "
        "after --encoders"
    )


def add_measuring(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `evaluate` and `attack`, which share their settings."""
    evaluate = command(
        "evaluate", "measure text encoders and UNets: success by every route and attack, and utility", "evaluation"
    )
    evaluate.add_argument("files", nargs="*", metavar="FILE", help="encoder.safetensors files; none: the original")
    evaluate.add_argument(
        "--encoders", nargs="+", action="extend", default=[], metavar="FILE", help="the same, wherever it stands"
    )
    evaluate.add_argument(
        "--unet",
        action="append",
        default=[],
        metavar="PATH",
        help="a trained UNet to measure too, a diffusers folder or a checkpoint; may be given again",
    )
    evaluate.add_argument(
        "--resume",
        action="store_true",
        help="keep what --out has of an evaluation with these settings, and measure "
        "the rest: other attacks, other encoders, or what an interruption left",
    )
    attack = command("attack", "search prompts that bring the concept back", "attack")
    attack.add_argument("--encoder", metavar="FILE", help="the encoder to attack (default: the model's own)")
    attack.add_argument("--unet", metavar="PATH", help=UNET)
    attack.add_argument("--method", choices=ATTACK_NAMES, default=DEFAULT_ATTACKS[0], help="(default: %(default)s)")
    evaluate.add_argument(
        "--attacks",
        nargs="+",
        type=attack_name,
        default=DEFAULT_ATTACKS,
        metavar="NAME",
        help=f"all, or some of {', '.join(ATTACK_NAMES)} (default: {' '.join(DEFAULT_ATTACKS)})",
    )
    attack.set_defaults(clip_score="", fid="", lpips="")
    for sub in (evaluate, attack):
        _add_asked(sub)
        add_bundle(sub)
        add_flags(sub, ConceptConfig, skip=("negative_guidance", "schedule"))
        add_flags(sub, EvaluateConfig)
        for prefix, own in FLAGS.items():
            shared = {name: "--" + flag.replace("_", "-") for name, flag in own.shared.items()}
            add_flags(sub, own, prefix + "-", defaults=shared)
        for config in (NudityConfig, ClassifierConfig, ZeroShotConfig, CombinedConfig):
            add_flags(sub, config)
    _add_kept(evaluate)


def _add_asked(sub: argparse.ArgumentParser) -> None:
    """Add the judge, and what a user may ask with."""
    sub.add_argument(
        "--judge",
        metavar="JUDGE",
        help="what says what a picture shows: miniature, nudity (needs nudenet), "
        "clip:FOLDER, or a folder with an image classifier or a CLIP of transformers; several: A+B, see --shown-by "
        "(default: the miniature's)",
    )
    sub.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts that ask for the concept, in place of those made from its name: one "
        "a line, or a .csv file with the column prompt and, for the noise of each, seed or evaluation_seed",
    )
    sub.add_argument(
        "--routes",
        metavar="FILE",
        help="the concept's other names, one a line, for the attack of that name (default: those that are shipped)",
    )
    sub.add_argument(
        "--images",
        metavar="FOLDER",
        help="your own pictures of the concept, the targets of the attacks that need "
        "some (default: those that the original model draws)",
    )


def _add_kept(evaluate: argparse.ArgumentParser) -> None:
    """Add what is to be kept, how that is measured, and which pictures stay."""
    evaluate.add_argument(
        "--retained",
        metavar="FILE",
        help='what is to be kept: lines "prompt | label" with a label of the judge, or '
        "prompts alone; or a .csv file with the columns prompt, label and seed (default: the miniature's own; none for "
        "other judges)",
    )
    evaluate.add_argument(
        "--clip-score",
        default="",
        metavar="FOLDER",
        help="also give the CLIP score of retained pictures, by a CLIP's folder in transformers' form",
    )
    evaluate.add_argument(
        "--fid",
        default="",
        metavar="FILE",
        help="also give the FID of retained pictures from the original model's, "
        "by the TorchScript file of an Inception (inception-2015-12-05.pt)",
    )
    evaluate.add_argument(
        "--lpips",
        default="",
        metavar="FILE",
        help="also give the LPIPS of retained pictures from the original "
        "model's of the same noise, by the TorchScript file of a network that takes two pictures (docs/attacks.md)",
    )
    evaluate.add_argument(
        "--write-scores",
        action="store_true",
        help="write what was measured into the metadata of each encoder's file, "
        "where `info` finds it; its tensors stay as they are",
    )
    evaluate.add_argument(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the picture of every case in OUT/cases, which report.json names (default: yes)",
    )
