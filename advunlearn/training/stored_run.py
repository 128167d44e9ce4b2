"""The settings of a saved run: a caller can resume it with them, whatever settings it has itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..config.training import SECTIONS, RunConfig
from ..errors import AdvUnlearnError
from ..files import STATE
from .checkpoint import FREE_SETTINGS, Checkpoints


@dataclass(frozen=True)
class StoredRun:
    """What a run was started with, and its losses so far."""

    run: RunConfig
    retain_prompts: list[str]
    resolution: int  # in pixels
    history: list[dict[str, float]]  # losses of each iteration

    def resume_with(self, given: RunConfig) -> RunConfig:
        """Return the settings to resume with: the stored ones, but `given` ones where a resumed run is free."""
        free = {name: getattr(given.train, name) for name in FREE_SETTINGS}
        return self.run.replace(train=free)

    def find_ignored(self, given: RunConfig, retain_prompts: Sequence[str], resolution: int) -> list[str]:
        """Return the given settings that differ from the stored ones, each as "name is NEW, stored OLD"."""
        old, new = self.resume_with(given).to_dict(), given.to_dict()
        ignored = [
            f"{key} is {value!r}, stored {old[section][key]!r}"
            for section, values in new.items()
            for key, value in values.items()
            if value != old[section][key]
        ]
        if resolution != self.resolution:
            ignored.append(f"resolution is {resolution}, stored {self.resolution}")
        if self.run.train.retains and list(retain_prompts) != self.retain_prompts:
            ignored.append(f"the retained prompts are {len(retain_prompts)}, stored {len(self.retain_prompts)}")
        return ignored


def read_stored_run(checkpoints: Checkpoints) -> StoredRun | None:
    """Return what the saved run was started with, without reading its weights; None if there is no saved run.

    Raises AdvUnlearnError for a state that cannot be read.
    """
    if not checkpoints.exists():
        return None
    try:
        state: Mapping[str, Any] = torch.load(checkpoints.folder / STATE, weights_only=True, mmap=True)
        settings = state["settings"]
        return StoredRun(
            run=RunConfig.from_dict({section: settings[section] for section in SECTIONS}),
            retain_prompts=list(settings["retain_prompts"]),
            resolution=8 * settings["latent_shape"][-1],
            history=list(state["history"]),
        )
    except AdvUnlearnError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise AdvUnlearnError(
            f"the state in {checkpoints.folder} cannot be read ({error}); start the run again without resume"
        ) from error
