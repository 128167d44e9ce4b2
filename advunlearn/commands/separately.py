"""`train`, of one run or of several: one for each concept."""

from __future__ import annotations

import pathlib
import re
from argparse import Namespace

from .runs import run_settings
from .runs import train_command as train_one


def train_command(args: Namespace) -> None:
    """Train once, or with --separately once for each concept, each run in a folder of its own."""
    if not args.separately:
        return train_one(args)
    concept = run_settings(args)[0]
    for name in concept.names:
        folder = pathlib.Path(args.out) / re.sub(r"\W+", "_", name).strip("_")
        one = {"ConceptConfig.concept": name, "out": str(folder), "bundle": "", "separately": False}
        train_one(Namespace(**(vars(args) | one)))
    return None
