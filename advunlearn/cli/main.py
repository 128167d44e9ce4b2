"""The command line: `advunlearn` or `python -m advunlearn`."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from .. import __version__
from ..errors import AdvUnlearnError, TrainingDiverged
from ..files import DONE, MEASURED, STATE
from ..formats.released import RELEASED_REPO
from . import config_file, evaluation_flags, flags


class Command(NamedTuple):
    """A command: its help text, its flags, and the default of --out ("": the command has no such flag).

    It is carried out by the function `run` of the module `commands.<name>`.
    """

    help: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    out: str = ""


COMMANDS = {
    "demo": Command(
        "train the baselines and AdvUnlearn on the miniature, attack all of them, and write a report",
        flags.add_demo,
        "demo",
    ),
    "train": Command("train a robust text encoder, or for comparison a UNet", flags.add_train, "run"),
    "estimate": Command(
        "estimate the memory and the work of a training run; --model may also be sd15 or sdxl (the shapes of Stable "
        "Diffusion 1.5 and XL), and no weights are read",
        flags.add_estimate,
    ),
    "evaluate": Command(
        "evaluate text encoders and UNets: attack success rate on the concept, utility on everything else",
        evaluation_flags.add_evaluate,
        "evaluation",
    ),
    "verify": Command(
        "attack a text encoder and compare the result with thresholds: exit code 0 if it passes, 1 if it fails, 2 for "
        "an error",
        evaluation_flags.add_verify,
        "verification",
    ),
    "attack": Command("search for prompts that bring the concept back", evaluation_flags.add_attack, "attack"),
    "sample": Command("generate images", flags.add_sample, "sample.png"),
    "miniature": Command("write the miniature in the shape of Stable Diffusion 1.5 or SDXL", flags.add_miniature),
    "info": Command("describe a file, and compare it with a base model", flags.add_info),
    "convert": Command("convert a text encoder to another format, bit for bit", flags.add_convert),
    "fetch": Command(
        f"download a text encoder released by the authors of AdvUnlearn ({RELEASED_REPO})", flags.add_fetch
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(prog="advunlearn", description="Robust concept erasure for text-to-image diffusion models.")
    parser.add_argument("--version", action="version", version=f"advunlearn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        command.add_flags(sub)
        if command.out:
            sub.add_argument("--out", default=command.out, help="where to write (default: %(default)s)")
        sub.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    0 is success, 1 a run that diverged or an encoder that fails its verification, 2 bad input, 130 an interrupt.
    """
    escape_unknown_characters()
    parser = build_parser()
    args = parser.parse_args(argv)
    _set_environment(args.command)
    try:
        args = config_file.apply_config(args, parser, argv)
        return run_command(args)
    except (AdvUnlearnError, OSError, ModuleNotFoundError) as error:
        hint = "; install PyTorch and requirements.txt" if isinstance(error, ModuleNotFoundError) else ""
        return _fail(args, 2, " ".join(str(error).split()) + hint)
    except TrainingDiverged as error:
        return _fail(args, 1, str(error))
    except KeyboardInterrupt:
        sys.stderr.write("\n")  # the terminal has echoed ^C
        return _fail(args, 130, "interrupted" + _resume_hint(args))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(
            args,
            2,
            f"the device has too little memory ({' '.join(str(error).split())[:200]}); `advunlearn estimate` says "
            "which training settings fit, --checkpointing needs the least; every command needs less with "
            "--dtype bfloat16",
        )


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that the device's or the computer's memory is not enough."""
    # torch's own class has this name, and the import of torch takes seconds; on the CPU it raises a RuntimeError.
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or "not enough memory" in str(error) or "can't allocate memory" in str(error)


def escape_unknown_characters() -> None:
    """Let stdout and stderr escape what their encoding lacks; by default that is an error, which would end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command(args: argparse.Namespace) -> int:
    """Import a command's module, which may import torch, and run it; return its exit code, 0 if it returns none."""
    return importlib.import_module(f"{__package__}.commands.{args.command}").run(args) or 0


def _set_environment(command: str) -> None:
    """Silence the libraries' progress bars and warnings, and keep them from downloading anything."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if command != "fetch":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _fail(args: argparse.Namespace, code: int, message: str) -> int:
    sys.stderr.write(f"advunlearn {args.command}: {message}\n")
    return code


def _resume_hint(args: argparse.Namespace) -> str:
    """Return what an interrupted command has saved and how to resume it."""
    out = pathlib.Path(getattr(args, "out", ""))
    if args.command == "train" and (out / config_file.NAME).is_file() and not (out / DONE).is_file():
        saved = "progress is" if (out / STATE).is_file() else "the bank was not complete; the settings are"
        return f"; {saved} saved in {args.out}. Resume with: advunlearn train --resume --out {shlex.quote(args.out)}"
    if args.command in ("evaluate", "verify") and any(out.glob("*" + MEASURED)):
        return f"; finished measurements are saved in {args.out}. Resume with: the same command and --resume"
    return ""
