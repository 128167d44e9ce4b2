"""Experiment trackers through accelerate, which is imported only when one is asked for."""

from __future__ import annotations

import difflib
import pathlib
from collections.abc import Mapping
from typing import Any

from ..errors import AdvUnlearnError

PROJECT = "advunlearn"


def names_of(setting: str) -> list[str]:
    """Return the trackers that a setting names, separated by commas; each is known to accelerate and installed.

    Raises AdvUnlearnError otherwise: accelerate itself passes over one that is not installed.
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
    there = [str(kind) for kind in get_available_trackers()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise AdvUnlearnError(f"tracker {name!r} is not known to accelerate, which has {', '.join(known)}{hint}")
        if name not in there:
            raise AdvUnlearnError(f"tracker {name!r} is not installed; pip install {name}, or leave tracker out")
    return names


class Trackers:
    """The trackers of one run.

    Args:
        names: from `names_of`; none is fine, and imports nothing.
        folder: the run's; what trackers write goes into it.
    """

    def __init__(self, names: list[str], folder: pathlib.Path) -> None:
        self.names, self.folder = names, folder
        self.accelerator: Any = None

    def start(self, config: Mapping[str, Any]) -> None:
        """Begin, with the run's settings."""
        if not self.names:
            return
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        place = ProjectConfiguration(str(self.folder), logging_dir=str(self.folder))
        self.accelerator = Accelerator(log_with=self.names, project_config=place)
        own = {"wandb": {"dir": str(self.folder), "name": self.folder.resolve().name}}
        self.accelerator.init_trackers(PROJECT, flat(config), own)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell the losses of an iteration."""
        if self.accelerator is not None:
            self.accelerator.log(dict(values), step=step)

    def finish(self) -> None:
        """End; what was told is written."""
        if self.accelerator is not None:
            for tracker in self.accelerator.trackers:  # its `end_training` would part the run's processes too
                tracker.finish()
            self.accelerator = None


def flat(config: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Return settings under dotted names, as trackers want them."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        out |= flat(value, f"{start}{name}.") if isinstance(value, Mapping) else {start + name: value}
    return out
