"""Commands about files: write the miniature, fetch an encoder, say what one is, convert it."""

from __future__ import annotations

import pathlib
from argparse import Namespace

from ...errors import AdvUnlearnError
from ...formats import inspect as compare
from ...formats import released
from ...formats.convert import convert
from ..progress_bar import Bar
from .common import finish


def miniature(args: Namespace) -> None:
    """Write the widened miniature."""
    from ...miniature import checkpoint

    path = pathlib.Path(args.to)
    if path.suffix == ".safetensors":
        checkpoint.write(path)
        finish(args, {"file": str(path)}, f"wrote {path}: it loads wherever a Stable Diffusion 1.5 checkpoint does")
    elif path.suffix or path.is_file():
        raise AdvUnlearnError(f"--to is {args.to!r}; give a file that ends in .safetensors, or a folder")
    else:
        checkpoint.write_folder(path)
        finish(args, {"file": str(path)}, f"wrote {path}: a diffusers folder in the shape of Stable Diffusion 1.5")


def info(args: Namespace) -> None:
    """Say what a file is, and how it differs from a base."""
    facts = compare.information(args.file, args.base)
    finish(args, facts, compare.in_words(facts))


def convert_command(args: Namespace) -> None:
    """Write a text encoder in another form."""
    done = convert(args.file, args.out, args.to, args.base, args.rank, args.overwrite, args.part)
    finish(args, done.facts, done.text)


def fetch(args: Namespace) -> None:
    """Fetch a released encoder."""
    bar = Bar(args.name)
    try:
        path = released.fetch(args.name, args.to, lambda done, total: bar.update("bytes", done, total))
    finally:
        bar.close()
    finish(args, {"file": str(path)}, f"{path}: give it to --encoder, or put its folder into models/text_encoders")
