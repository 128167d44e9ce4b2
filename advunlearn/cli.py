"""The command line: `advunlearn` or `python -m advunlearn`. Flags are made from the settings in `config`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar, get_type_hints

from . import __version__, configfile
from .attack_config import ATTACK_NAMES, DEFAULT_ATTACKS, FLAGS
from .config import (
    CONVERSIONS,
    DEMO_BUDGET,
    DTYPES,
    PREDICTION_TYPES,
    AttackConfig,
    BankConfig,
    ClassifierConfig,
    ConceptConfig,
    EvaluateConfig,
    NudityConfig,
    RunConfig,
    TrainConfig,
    ZeroShotConfig,
    choices,
)
from .errors import AdvUnlearnError, TrainingDiverged
from .presets import BUNDLES, CUSTOM, PRESETS
from .released import NAMES, REPO

Config = TypeVar("Config")
UNET = "a trained UNet, a diffusers folder or a checkpoint (default: the model's own)"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


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
                flag, dest=config.__name__ + "." + field.name, action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS, help=field.metadata["help"],
            )  # fmt: skip
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


def settings(config: type[Config], args: argparse.Namespace, **defaults: Any) -> Config:
    """Make a settings object from parsed flags; `defaults` are a command's own."""
    start = config.__name__ + "."
    given = {k.removeprefix(start): v for k, v in vars(args).items() if k.startswith(start)}
    return config(**{**defaults, **given})


def build_parser() -> Parser:
    """Return the whole command line."""
    parser = Parser(prog="advunlearn", description="Robust concept erasure for text-to-image diffusion models.")
    parser.add_argument("--version", action="version", version=f"advunlearn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str,
        help: str,
        out: str | None = None,
        model: str = "'miniature', a diffusers folder, or a Stable Diffusion 1.x checkpoint in one file",
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        if model:
            sub.add_argument("--model", default="miniature", help=f"{model} (default: %(default)s)")
            sub.add_argument("--device", help="cuda, mps or cpu (default: the first that is there)")
            sub.add_argument(
                "--dtype",
                choices=DTYPES,
                default=DTYPES[0],
                help="arithmetic of the frozen parts; what trains keeps float32 weights (default: %(default)s)",
            )
            sub.add_argument(
                "--prediction-type",
                choices=PREDICTION_TYPES,
                default=PREDICTION_TYPES[0],
                help="what the UNet predicts; auto is what the model says, else epsilon (default: %(default)s)",
            )
        if out:
            sub.add_argument("--out", default=out, help="where to write (default: %(default)s)")
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        return sub

    demo = command(
        "demo", "train the baselines and AdvUnlearn on the miniature, attack them all, write a report", "demo"
    )
    add_flags(demo, ConceptConfig, skip=("schedule",))
    add_flags(demo, EvaluateConfig, skip=("seed",), defaults=DEMO_BUDGET)
    demo.add_argument("--seed", type=int, default=0, help="seed of training (default: %(default)s)")

    _add_train(command("train", "train a robust text encoder, or for comparison a UNet", "run", model=""))
    estimate = command(
        "estimate", "say how much memory and work a training run takes, of --model sd15 (the shape of Stable Diffusion "
        "1.5) too; no weights are read", model="",
    )  # fmt: skip
    estimate.add_argument("--resolution", type=int, metavar="PIXELS", help="of the pictures (default: the model's own)")
    _add_run_settings(estimate, skip=("checkpoint_every", "sample_every", "tracker"))
    _add_measuring(command)
    sample = command("sample", "draw pictures", "sample.png")
    sample.add_argument("prompts", nargs="+", metavar="PROMPT")
    sample.add_argument("--encoder", metavar="FILE", help="a trained encoder (default: the model's own)")
    sample.add_argument("--unet", metavar="PATH", help=UNET)
    sample.add_argument("--count", type=int, default=4, help="pictures per prompt (default: %(default)s)")
    add_flags(sample, EvaluateConfig, skip=[
        f.name for f in dataclasses.fields(EvaluateConfig) if f.name not in ("sampling_steps", "guidance_scale", "seed")
    ])  # fmt: skip
    miniature = command("miniature", "write the miniature in the shape of Stable Diffusion 1.5", model="")
    miniature.add_argument(
        "--to", required=True, metavar="FILE.safetensors|DIR",
        help="where to write it, about 490 MB: a checkpoint, or a diffusers folder",
    )  # fmt: skip
    _add_files(command)
    fetch = command("fetch", f"fetch an encoder that the method's authors released ({REPO})", model="")
    fetch.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    fetch.add_argument("--to", default=".", metavar="DIR", help="folder to put its folder into (default: here)")
    return parser


def _add_run_settings(sub: argparse.ArgumentParser, skip: Sequence[str] = ()) -> None:
    """Add the settings of a training run, and the file that may hold them."""
    sub.set_defaults(parser=sub)
    sub.add_argument(
        "--config", metavar="FILE", help="settings from a .yaml or .json file, such as a run's config.json; flags that "
        "are given win"
    )  # fmt: skip
    add_flags(sub, RunConfig, skip=skip)
    for config, prefix in ((ConceptConfig, ""), (TrainConfig, ""), (AttackConfig, "attack-"), (BankConfig, "bank-")):
        add_flags(sub, config, prefix)
    sub.add_argument(
        "--preset", choices=tuple(PRESETS), default=CUSTOM, help="published settings for Stable Diffusion 1.x; flags "
        "that are given win (default: %(default)s, our own)"
    )  # fmt: skip
    sub.add_argument("--bundle", choices=tuple(BUNDLES), default="", help="several concepts by one name")


def _add_train(train: argparse.ArgumentParser) -> None:
    """Add the flags of `train`."""
    _add_run_settings(train)
    train.add_argument("--resume", action="store_true", help="go on with the run whose state is in --out")
    train.add_argument(
        "--single-file", action="store_true", help="write the whole model too, with what was trained in it, as one "
        "Stable Diffusion 1.x checkpoint, checkpoint.safetensors"
    )  # fmt: skip
    train.add_argument(
        "--separately", action="store_true", help="one run for each concept, each in a folder of its own in --out; "
        "with --json one line for each"
    )  # fmt: skip


def _add_files(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `info` and `convert`."""
    info = command("info", "say what a file is, and how it differs from a base", model="")
    info.add_argument("file", metavar="FILE")
    info.add_argument("--base", metavar="FILE|MODEL", help="compare it with the text encoder of this file or model")
    convert = command("convert", "write a text encoder in another form, bit for bit", model="")
    convert.add_argument("file", metavar="IN", help="a file or folder that holds a CLIP-L text encoder")
    convert.add_argument("out", metavar="OUT", help="what to write: a .safetensors file, or for diffusers a folder")
    convert.add_argument("--to", required=True, choices=tuple(CONVERSIONS), help="; ".join(
        f"{name}: {help}" for name, help in CONVERSIONS.items()
    ))  # fmt: skip
    convert.add_argument(
        "--base", metavar="FILE|MODEL", help="the encoder before training, or the checkpoint to put this one into"
    )
    convert.add_argument("--rank", type=int, default=32, help="rank of a LoRA (default: %(default)s)")
    convert.add_argument("--overwrite", action="store_true", help="replace what is there")


def _add_measuring(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `evaluate` and `attack`, which share their settings."""
    evaluate = command(
        "evaluate", "measure text encoders and UNets: success by every route and attack, and utility", "evaluation"
    )
    evaluate.add_argument("encoders", nargs="*", metavar="FILE", help="encoder.safetensors files; none: the original")
    evaluate.add_argument(
        "--unet", action="append", default=[], metavar="PATH", help="a trained UNet to measure too, a diffusers folder "
        "or a checkpoint; may be given again"
    )  # fmt: skip
    attack = command("attack", "search prompts that bring the concept back", "attack")
    attack.add_argument("--encoder", metavar="FILE", help="the encoder to attack (default: the model's own)")
    attack.add_argument("--unet", metavar="PATH", help=UNET)
    attack.add_argument("--method", choices=ATTACK_NAMES, default=DEFAULT_ATTACKS[0], help="(default: %(default)s)")
    evaluate.add_argument(
        "--attacks", nargs="+", choices=(*ATTACK_NAMES, "all"), default=DEFAULT_ATTACKS, metavar="NAME",
        help=f"all, or some of {', '.join(ATTACK_NAMES)} (default: {' '.join(DEFAULT_ATTACKS)})",
    )  # fmt: skip
    for sub in (evaluate, attack):
        sub.add_argument(
            "--judge",
            metavar="JUDGE",
            help="what says what a picture shows: miniature, nudity (needs nudenet), clip:FOLDER, or a folder with an "
            "image classifier or a CLIP of transformers (default: the miniature's)",
        )
        sub.add_argument(
            "--prompts",
            metavar="FILE",
            help="prompts that ask for the concept, one a line, in place of those made from its name",
        )
        sub.add_argument(
            "--routes",
            metavar="FILE",
            help="the concept's other names, one a line, for the attack of that name (default: those that are shipped)",
        )
        add_flags(sub, ConceptConfig, skip=("negative_guidance", "schedule"))
        add_flags(sub, EvaluateConfig)
        for prefix, own in FLAGS.items():
            add_flags(sub, own, prefix + "-")
        for config in (NudityConfig, ClassifierConfig, ZeroShotConfig):
            add_flags(sub, config)
    evaluate.add_argument(
        "--retained",
        metavar="FILE",
        help='what is to be kept: lines "prompt | label" with a label of the judge, or prompts alone '
        "(default: the miniature's own; none for other judges)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 2 for bad input, 130 for an interrupt, 1 for a run that diverged."""
    parser = build_parser()
    args = parser.parse_args(argv)
    # The libraries' own bars and warnings would bury ours.
    for name, value in (("TRANSFORMERS_VERBOSITY", "error"), ("DIFFUSERS_VERBOSITY", "error")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if args.command != "fetch":  # nothing else ever fetches from a hub
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        args = configfile.resolved(args, parser, argv)
        from . import commands  # heavy imports only once a command runs

        commands.COMMANDS[args.command](args)
    except (AdvUnlearnError, OSError, ModuleNotFoundError) as error:
        hint = "; install PyTorch and requirements.txt" if isinstance(error, ModuleNotFoundError) else ""
        sys.stderr.write(f"advunlearn {args.command}: {' '.join(str(error).split())}{hint}\n")
        return 2
    except TrainingDiverged as error:
        sys.stderr.write(f"advunlearn {args.command}: {error}\n")
        return 1
    except KeyboardInterrupt:
        kept = args.command == "train" and os.path.isfile(os.path.join(args.out, "state.pt"))
        again = f"advunlearn train --resume --out {shlex.quote(args.out)}"
        more = f"; {args.out} keeps the run; to go on: {again}" if kept else ""
        sys.stderr.write(f"\nadvunlearn {args.command}: interrupted{more}\n")
        return 130
    return 0
