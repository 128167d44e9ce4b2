"""What the commands share."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from ..progress_bar import Bar


def finish(args: Namespace, result: Mapping[str, Any], text: str) -> None:
    """Print the result: JSON when asked for, else text."""
    sys.stdout.write((json.dumps(result) if args.json else text) + "\n")


def measuring(name: str) -> tuple[Bar, Callable[[str, int, int], None]]:
    """Return a progress bar, and how an evaluator tells it where it is."""
    bar = Bar(name)
    return bar, lambda what, done, total: bar.update(what, done, total)
