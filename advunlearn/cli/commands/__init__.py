"""What each command does. Results go to files and, with --json, to stdout; progress goes to stderr."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

from .bench import bench
from .evaluate import attack, evaluate, sample
from .files import convert_command, fetch, info, miniature
from .separately import train_command
from .train import demo, estimate_command

COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "demo": demo,
    "train": train_command,
    "estimate": estimate_command,
    "attack": attack,
    "evaluate": evaluate,
    "sample": sample,
    "info": info,
    "convert": convert_command,
    "miniature": miniature,
    "fetch": fetch,
    "bench": bench,
}
