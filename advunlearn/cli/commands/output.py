"""Output of the commands."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping


def print_result(args: Namespace, result: Mapping[str, object], text: str) -> None:
    """Print a result on stdout: as text, or with --json as one JSON object."""
    sys.stdout.write((json.dumps(result) if args.json else text) + "\n")
