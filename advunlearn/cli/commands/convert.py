"""`advunlearn convert`: convert a text encoder to another format."""

from __future__ import annotations

from argparse import Namespace

from ...formats.convert import convert
from ..inputs import resolve_miniature
from .output import print_result


def run(args: Namespace) -> None:
    """Convert a text encoder."""
    base = resolve_miniature(args.base) if args.base else None
    file = resolve_miniature(args.file)
    done = convert(file, args.out, args.to, base, args.rank, args.overwrite, args.part)
    print_result(args, done.facts, done.text)
