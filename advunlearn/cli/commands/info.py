"""`advunlearn info`: describe a file, and compare it with a base model."""

from __future__ import annotations

from argparse import Namespace

from ...formats.inspect import format_facts, inspect_file
from ..inputs import resolve_miniature
from .output import print_result


def run(args: Namespace) -> None:
    """Describe a file."""
    base = resolve_miniature(args.base) if args.base else None
    facts = inspect_file(resolve_miniature(args.file), base)
    facts["file"] = args.file
    if base:
        facts["base"]["file"] = args.base
    print_result(args, facts, format_facts(facts))
