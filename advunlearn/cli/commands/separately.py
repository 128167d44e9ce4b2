"""`train`, of one run or of several: one for each concept."""

from __future__ import annotations

import pathlib
import re
from argparse import Namespace
from collections.abc import Sequence

from ...config.training import RunConfig
from ...errors import AdvUnlearnError
from ...reporting.report import write_json
from ...training.checkpoint import Checkpoints
from ...training.distributed import Processes, joined
from ..config_file import NAME, saved
from ..flags import settings
from ..inputs import out_folder
from .train import run_settings
from .train import train_command as train_one


def folders_of(names: Sequence[str]) -> dict[str, str]:
    """Return each concept's folder. Raises AdvUnlearnError where two would have the same, or one none."""
    folders = {name: re.sub(r"\W+", "_", name).strip("_") for name in names}
    if "" in folders.values() or len(set(folders.values())) < len(names):
        raise AdvUnlearnError(f"the concepts {', '.join(names)} do not give a folder each; train them one by one")
    return folders


def train_command(args: Namespace) -> None:
    """Train once, or with --separately once for each concept, each run in a folder of its own.

    Processes that were launched together train every run together.
    """
    with joined() as processes:
        if args.separately:
            return train_each(args, processes)
        return train_one(args, processes)


def train_each(args: Namespace, processes: Processes) -> None:
    """Train once for each concept."""
    concept, train, attack, bank = run_settings(args)
    folders, out = folders_of(concept.names), pathlib.Path(args.out)
    configs = {c: v.to_dict() for c, v in (("concept", concept), ("train", train), ("attack", attack), ("bank", bank))}
    if args.resume and not (out / NAME).is_file():
        raise AdvUnlearnError(f"{out} holds no runs to go on with; leave --resume out, or give another --out")
    if processes.main:
        write_json(out_folder(args) / NAME, saved(settings(RunConfig, args), configs, {}))  # what --resume goes on with
    for name, folder in folders.items():
        # A run that had not begun when the others were interrupted begins.
        resume = args.resume and Checkpoints(out / folder).exists()
        one = {"ConceptConfig.concept": name, "out": str(out / folder), "separately": False, "resume": resume}
        train_one(Namespace(**(vars(args) | one)), processes)
