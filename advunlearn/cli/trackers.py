"""Experiment trackers through accelerate, which is imported only if one is chosen."""

from __future__ import annotations

import difflib
import pathlib
from collections.abc import Mapping
from typing import Any

from ..errors import AdvUnlearnError

PROJECT = "advunlearn"


def parse_trackers(setting: str) -> list[str]:
    """Return the trackers of a setting, separated by commas.

    Raises AdvUnlearnError for a tracker that accelerate does not know or that is not installed; accelerate itself
    ignores the latter.
    """
    names = [name.strip() for name in setting.split(",") if name.strip()]
    if not names:
        return []
    try:
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import LoggerType
    except ModuleNotFoundError as error:
        raise AdvUnlearnError(
            f"tracker {setting!r} needs the package accelerate; pip install accelerate, or leave tracker out"
        ) from error
    known = [kind.value for kind in LoggerType if kind.value != "all"]
    installed = [str(kind) for kind in get_available_trackers()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise AdvUnlearnError(f"tracker {name!r} is not known to accelerate, which has {', '.join(known)}{hint}")
        if name not in installed:
            raise AdvUnlearnError(f"tracker {name!r} is not installed; pip install {name}, or leave tracker out")
    return names


class Trackers:
    """The trackers of one run.

    Args:
        names: from `parse_trackers`; without names nothing is imported.
        folder: the run folder; trackers write their files into it.
    """

    def __init__(self, names: list[str], folder: pathlib.Path) -> None:
        self.names = names
        self.folder = folder
        self.accelerator: Any = None

    def start(self, config: Mapping[str, object]) -> None:
        """Start the trackers with the settings of the run."""
        if not self.names:
            return
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        paths = ProjectConfiguration(str(self.folder), logging_dir=str(self.folder))
        self.accelerator = Accelerator(log_with=self.names, project_config=paths)
        options = {"wandb": {"dir": str(self.folder), "name": self.folder.resolve().name}}
        self.accelerator.init_trackers(PROJECT, flatten_settings(config), options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the losses of an iteration."""
        if self.accelerator is not None:
            self.accelerator.log(dict(values), step=step)

    def finish(self) -> None:
        """End the trackers; everything that was logged is written."""
        if self.accelerator is not None:
            for tracker in self.accelerator.trackers:  # `end_training` would also end the process group
                tracker.finish()
            self.accelerator = None


def flatten_settings(config: Mapping[str, object], start: str = "") -> dict[str, object]:
    """Return settings under dotted names, as trackers expect them."""
    out: dict[str, object] = {}
    for name, value in config.items():
        out |= flatten_settings(value, f"{start}{name}.") if isinstance(value, Mapping) else {start + name: value}
    return out
