"""Commands about files: write the miniature, fetch an encoder, say what one is, convert it."""

from __future__ import annotations

import pathlib
from argparse import Namespace

from ...errors import AdvUnlearnError
from ...formats import released
from ...formats.convert import convert
from ...formats.inspect import format_facts, inspect_file
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


def _resolve(name: str) -> str:
    """Return the folder of the shipped model for 'miniature', any other path as it is."""
    from ... import miniature as shipped

    return str(shipped.path()) if name == "miniature" else name


def info(args: Namespace) -> None:
    """Say what a file is, and how it differs from a base."""
    base = _resolve(args.base) if args.base else None
    facts = inspect_file(_resolve(args.file), base)
    facts["file"] = args.file
    if base:
        facts["base"]["file"] = args.base
    finish(args, facts, format_facts(facts))


def convert_command(args: Namespace) -> None:
    """Write a text encoder in another form."""
    base = _resolve(args.base) if args.base else None
    done = convert(_resolve(args.file), args.out, args.to, base, args.rank, args.overwrite, args.part)
    finish(args, done.facts, done.text)


def fetch(args: Namespace) -> None:
    """Fetch a released encoder."""
    bar = Bar(args.name)
    try:
        path = released.fetch_encoder(args.name, args.to, lambda done, total: bar.update("bytes", done, total))
    finally:
        bar.close()
    finish(args, {"file": str(path)}, f"{path}: give it to --encoder, or put its folder into models/text_encoders")
