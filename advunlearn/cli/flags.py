"""The flags of every command, made from the settings classes in `config`. Imports nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar, get_type_hints

from ..config.adversary import AdversaryConfig
from ..config.base import choices
from ..config.concept import ConceptConfig
from ..config.evaluation import (
    DEMO_BUDGET,
    EvaluateConfig,
)
from ..config.io import CONVERSIONS, ModelConfig, OutputConfig, RetainConfig
from ..config.presets import AUTO, PRESETS
from ..config.training import ENCODER_NAMES, BankConfig, RunConfig, TrainConfig
from ..files import JsonDict
from ..formats.released import RELEASED_ENCODERS

Config = TypeVar("Config")
ENCODER = "a trained text encoder (default: the model's own)"
UNET = "a trained UNet: a diffusers folder or a checkpoint (default: the model's own)"
SAMPLING = ("sampling_steps", "guidance_scale", "seed")  # the settings of EvaluateConfig that `sample` uses


def make_flag(name: str, prefix: str = "") -> str:
    """Return the flag of a setting; a name that begins with the prefix already is not prefixed again."""
    flag = name.replace("_", "-")
    return "--" + (flag if flag.startswith(prefix) else prefix + flag)


def add_flags(
    parser: argparse.ArgumentParser,
    config: type,
    prefix: str = "",
    skip: Sequence[str] = (),
    defaults: Mapping[str, object] | None = None,
) -> None:
    """Add a flag for every field of a settings class.

    Args:
        parser: the parser of a command.
        config: the settings class; its fields have the help texts, choices and defaults.
        prefix: put in front of every flag, see `make_flag`.
        skip: fields without a flag.
        defaults: defaults of the command, shown in the help instead of the fields' own.
    """
    group = parser.add_argument_group(config.__name__.removesuffix("Config").lower() + " settings")
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        options: JsonDict = {"dest": f"{config.__name__}.{field.name}", "default": argparse.SUPPRESS}
        help, hint, allowed = field.metadata["help"], hints[field.name], choices(config, field.name)
        if hint is bool:
            options |= {"action": argparse.BooleanOptionalAction, "help": help}
        else:
            default = (defaults or {}).get(field.name, field.default)
            options["help"] = f"{help} (default: {default})".replace("%", "%%")
            options |= {"choices": allowed} if allowed else {"type": hint, "metavar": hint.__name__.upper()}
        group.add_argument(make_flag(field.name, prefix), **options)


def given_settings(config: type, args: argparse.Namespace) -> dict[str, object]:
    """Return the settings of a class that were given as flags."""
    start = config.__name__ + "."
    return {name.removeprefix(start): value for name, value in vars(args).items() if name.startswith(start)}


def settings(config: type[Config], args: argparse.Namespace, **defaults: object) -> Config:
    """Make a settings object from parsed flags; `defaults` are those of the command."""
    return config(**{**defaults, **given_settings(config, args)})


def run_settings(args: argparse.Namespace) -> RunConfig:
    """Make the run configuration from parsed flags."""
    return RunConfig(
        concept=settings(ConceptConfig, args),
        train=settings(TrainConfig, args),
        attack=settings(AdversaryConfig, args),
        bank=settings(BankConfig, args),
    )


def add_run_flags(sub: argparse.ArgumentParser) -> None:
    """Add the settings of a training run, and the options for a file and a preset of them."""
    sub.set_defaults(parser=sub)
    sub.add_argument(
        "--config",
        metavar="FILE",
        help="read settings from a .yaml or .json file, such as the config.json of a run; flags override it",
    )
    sub.add_argument(
        "--preset",
        choices=(AUTO, *PRESETS),
        default=AUTO,
        help="settings for a kind of model or concept; flags override them (default: %(default)s: for the miniature "
        "its own, which are the defaults below, for other models the published ones of the concept's kind; custom: "
        "the defaults below)",
    )
    add_flags(sub, ModelConfig)
    add_flags(sub, RetainConfig)
    add_flags(sub, ConceptConfig)
    add_flags(sub, TrainConfig)
    add_flags(sub, AdversaryConfig, "attack-")
    add_flags(sub, BankConfig, "bank-")


def add_train(sub: argparse.ArgumentParser) -> None:
    """Add the flags of `train`."""
    add_run_flags(sub)
    add_flags(sub, OutputConfig)
    sub.add_argument(
        "--resume",
        action="store_true",
        help="resume the interrupted run in --out (settings come from its config.json; all that are given must match)",
    )


def add_estimate(sub: argparse.ArgumentParser) -> None:
    """Add the flags of `estimate`."""
    sub.add_argument("--resolution", type=int, metavar="PIXELS", help="image size (default: the model's own)")
    add_run_flags(sub)


def add_demo(sub: argparse.ArgumentParser) -> None:
    """Add the flags of `demo`."""
    add_flags(sub, ModelConfig)
    add_flags(sub, ConceptConfig, skip=("schedule",))
    add_flags(sub, EvaluateConfig, skip=("seed",), defaults=DEMO_BUDGET)
    sub.add_argument("--seed", type=int, default=0, help="seed of training (default: %(default)s)")


def add_sample(sub: argparse.ArgumentParser) -> None:
    """Add the flags of `sample`."""
    add_flags(sub, ModelConfig)
    sub.add_argument("prompts", nargs="+", metavar="PROMPT")
    sub.add_argument("--encoder", metavar="FILE", help=ENCODER)
    sub.add_argument("--unet", metavar="PATH", help=UNET)
    sub.add_argument("--count", type=int, default=4, help="images per prompt (default: %(default)s)")
    others = [field.name for field in dataclasses.fields(EvaluateConfig) if field.name not in SAMPLING]
    add_flags(sub, EvaluateConfig, skip=others)


def add_miniature(sub: argparse.ArgumentParser) -> None:
    """Add the flags of `miniature`."""
    sub.add_argument(
        "--to",
        required=True,
        metavar="FILE.safetensors|DIR",
        help="the checkpoint or the diffusers folder to write, about 490 MB (sdxl: 2.1 GB, and 80 MB as a folder)",
    )
    sub.add_argument(
        "--as",
        dest="family",
        choices=("sd15", "sdxl"),
        default="sd15",
        help="shape of the model: Stable Diffusion 1.5, or SDXL with both of its text encoders (default: %(default)s)",
    )


def add_info(sub: argparse.ArgumentParser) -> None:
    """Add the flags of `info`."""
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--base", metavar="FILE|MODEL", help="compare the file's text encoders or UNet with those of this")


def add_convert(sub: argparse.ArgumentParser) -> None:
    """Add the flags of `convert`."""
    sub.add_argument("file", metavar="IN", help="a file or folder that holds a CLIP text encoder")
    sub.add_argument("out", metavar="OUT", help="the .safetensors file to write, or for diffusers the folder")
    formats = "; ".join(f"{name}: {help}" for name, help in CONVERSIONS.items())
    sub.add_argument("--to", required=True, choices=tuple(CONVERSIONS), help=formats)
    sub.add_argument(
        "--base", metavar="FILE|MODEL", help="the encoder before training, or the checkpoint that receives this one"
    )
    sub.add_argument(
        "--part",
        choices=ENCODER_NAMES,
        default=ENCODER_NAMES[0],
        help="which text encoder, if IN is a checkpoint of Stable Diffusion XL (default: %(default)s)",
    )
    sub.add_argument("--rank", type=int, default=32, help="rank of a LoRA (default: %(default)s)")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing file or folder")


def add_fetch(sub: argparse.ArgumentParser) -> None:
    """Add the flags of `fetch`."""
    sub.add_argument("name", choices=RELEASED_ENCODERS, metavar="NAME", help=", ".join(RELEASED_ENCODERS))
    sub.add_argument(
        "--to", default=".", metavar="DIR", help="the encoder's folder is made in this folder (default: here)"
    )
