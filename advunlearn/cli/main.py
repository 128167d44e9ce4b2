"""The command line: `advunlearn` or `python -m advunlearn`. Flags are made from the settings in `config`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..bench import SUITES
from ..config.concept import ConceptConfig
from ..config.evaluation import DEMO_BUDGET, EvaluateConfig
from ..errors import AdvUnlearnError, TrainingDiverged
from ..files import DONE, MEASURED, STATE
from ..formats.released import RELEASED_ENCODERS, RELEASED_REPO
from . import config_file as configfile
from .flags import UNET, add_files, add_flags, add_measuring, add_model, add_run_settings, add_train


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> Parser:
    """Return the whole command line."""
    parser = Parser(prog="advunlearn", description="Robust concept erasure for text-to-image diffusion models.")
    parser.add_argument("--version", action="version", version=f"advunlearn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str,
        help: str,
        out: str | None = None,
        model: bool = True,
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        if model:
            add_model(sub)
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

    add_train(command("train", "train a robust text encoder, or for comparison a UNet", "run", model=False))
    estimate = command(
        "estimate",
        "say how much memory and work a training run takes, of --model sd15 or sdxl (the shapes of Stable "
        "Diffusion 1.5 and XL) too; no weights are read",
        model=False,
    )
    estimate.add_argument("--resolution", type=int, metavar="PIXELS", help="of the pictures (default: the model's own)")
    add_run_settings(estimate, skip=("checkpoint_every", "sample_every", "single_file", "tracker"))
    bench = command("bench", "measure what a run costs on this machine (benchmarks/README.md)", model=False)
    bench.add_argument("--suite", nargs="+", choices=(*SUITES, "all"), default=["iteration"], help="what to measure")
    bench.add_argument("--device", default="", help="cuda, mps or cpu (default: the first of them that is there)")
    bench.add_argument("--repeats", type=int, default=3, help="times that an iteration runs (default: %(default)s)")
    add_measuring(command)
    sample = command("sample", "draw pictures", "sample.png")
    sample.add_argument("prompts", nargs="+", metavar="PROMPT")
    sample.add_argument("--encoder", metavar="FILE", help="a trained encoder (default: the model's own)")
    sample.add_argument("--unet", metavar="PATH", help=UNET)
    sample.add_argument("--count", type=int, default=4, help="pictures per prompt (default: %(default)s)")
    add_flags(
        sample,
        EvaluateConfig,
        skip=[
            f.name
            for f in dataclasses.fields(EvaluateConfig)
            if f.name not in ("sampling_steps", "guidance_scale", "seed")
        ],
    )
    miniature = command("miniature", "write the miniature in the shape of Stable Diffusion 1.5", model=False)
    miniature.add_argument(
        "--to",
        required=True,
        metavar="FILE.safetensors|DIR",
        help="where to write it, about 490 MB: a checkpoint, or a diffusers folder",
    )
    add_files(command)
    fetch = command("fetch", f"fetch an encoder that the method's authors released ({RELEASED_REPO})", model=False)
    fetch.add_argument("name", choices=RELEASED_ENCODERS, metavar="NAME", help=", ".join(RELEASED_ENCODERS))
    fetch.add_argument("--to", default=".", metavar="DIR", help="folder to put its folder into (default: here)")
    return parser


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
        from . import commands

        commands.COMMANDS[args.command](args)
    except (AdvUnlearnError, OSError, ModuleNotFoundError) as error:
        hint = "; install PyTorch and requirements.txt" if isinstance(error, ModuleNotFoundError) else ""
        sys.stderr.write(f"advunlearn {args.command}: {' '.join(str(error).split())}{hint}\n")
        return 2
    except TrainingDiverged as error:
        sys.stderr.write(f"advunlearn {args.command}: {error}\n")
        return 1
    except KeyboardInterrupt:
        kept = _kept(args)
        more = f"; {args.out} keeps the {kept[0]}; to go on: {kept[1]}" if kept else ""
        sys.stderr.write(f"\nadvunlearn {args.command}: interrupted{more}\n")
        return 130
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's own, which is not imported for the sake of its name
            raise
        sys.stderr.write(
            f"advunlearn {args.command}: the device has too little memory ({' '.join(str(error).split())[:200]}); "
            "`advunlearn estimate` says which training settings fit, --checkpointing needs the least; every command "
            "needs less with --dtype bfloat16\n"
        )
        return 2
    return 0


def _kept(args: argparse.Namespace) -> tuple[str, str] | None:
    """Return what an interrupted command left, and the command that goes on with it."""
    separately, out = getattr(args, "separately", False), pathlib.Path(getattr(args, "out", ""))
    if args.command == "train" and (out / configfile.NAME).is_file() and not (out / DONE).is_file():
        begun = any(out.glob(f"*/{STATE}" if separately else STATE))
        again = f"advunlearn train --resume {'--separately ' * separately}--out {shlex.quote(args.out)}"
        return "run" if begun else "run's settings, since its bank was not filled yet", again
    if args.command == "evaluate" and any(out.glob("*" + MEASURED)):
        return "parts that were measured", "the same command with --resume"
    return None
