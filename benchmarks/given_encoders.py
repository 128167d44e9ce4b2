"""Encoders that a benchmark is given as files, and how its rows name them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from advunlearn.formats.text_encoders import export_state, hash_encoder
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import TextToImage


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse `run CONCEPT ENCODER [ENCODER ...]` or `table`, and the parser's own flags."""
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("concept", nargs="?", default="")
    parser.add_argument("encoders", nargs="*", metavar="ENCODER", help="trained from the miniature")
    args = parser.parse_args()
    if args.what == "run" and not args.encoders:
        parser.error("run needs a concept and at least one encoder")
    return args


def load_encoders(paths: Sequence[str], model: TextToImage, concept: str) -> Iterator[tuple[dict[str, str], nn.Module]]:
    """Yield each encoder with the entries that its rows have: concept, mode of its training, start of its hash.

    The program ends at an encoder of another concept.
    """
    for path in paths:
        encoder, metadata = load_encoder(path, model.text_encoder)
        recipe: dict[str, Any] = json.loads(metadata.get("advunlearn.recipe", "{}"))
        erased = recipe.get("concept", {}).get("concept", concept)
        if erased != concept:
            sys.exit(f"{path} was erased of {erased!r}; give encoders of {concept!r}, or that concept")
        mode = recipe.get("train", {}).get("mode", "unknown")
        yield {"concept": concept, "mode": mode, "sha256": hash_encoder(export_state(encoder))[:16]}, encoder
