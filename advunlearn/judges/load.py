"""A judge by its name on the command line."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError

from .. import miniature
from ..config.evaluation import ClassifierConfig, CombinedConfig, NudityConfig, ZeroShotConfig
from ..errors import AdvUnlearnError
from .base import Judge
from .folders import kind_of

CONFIGS: dict[str, type | None] = {
    "miniature": None,
    "nudity": NudityConfig,
    "classifier": ClassifierConfig,
    "clip": ZeroShotConfig,
    "several": CombinedConfig,
}


def resolve(name: str) -> tuple[str, pathlib.Path]:
    """Return the kind and the folder of "miniature", "nudity", "clip:FOLDER", or a folder whose config.json says it.

    Raises AdvUnlearnError for a folder that holds no judge.
    """
    if name == "miniature":
        return name, miniature.judge_path()
    if name == "nudity":
        return name, pathlib.Path()
    if name.startswith("clip:"):
        return "clip", pathlib.Path(name.removeprefix("clip:"))
    return kind_of(name), pathlib.Path(name)


def names_of(name: str) -> list[str]:
    """Return the judges of "A+B"; a folder may have a + in its name. Raises AdvUnlearnError where one has no name."""
    if "+" not in name or pathlib.Path(name.removeprefix("clip:")).exists():
        return [name]
    names = [part.strip() for part in name.split("+")]
    if "" in names:
        raise AdvUnlearnError(f"judge {name!r} has a + with nothing beside it; give judges as A+B")
    return names


def make_judge(name: str, settings: Callable[[type], Any] = lambda config: config(), device: str = "cpu") -> Judge:
    """Load a judge.

    Args:
        name: see `resolve`; or several as "A+B", see `CombinedJudge`.
        settings: makes the settings object of the judge's class.
        device: where a transformers model computes.
    """
    if len(names := names_of(name)) > 1:
        from .combined import CombinedJudge

        return CombinedJudge([make_judge(each, settings, device) for each in names], settings(CombinedConfig))
    kind, folder = resolve(name)
    if kind == "nudity":
        from .nudity import NudityJudge

        return NudityJudge(settings(NudityConfig))
    if kind == "classifier":
        from .classifier import ClassifierJudge

        return ClassifierJudge(folder, settings(ClassifierConfig), device)
    if kind == "clip":
        from .zero_shot import ZeroShotJudge

        return ZeroShotJudge(folder, settings(ZeroShotConfig), device)
    return convnet(folder)


def convnet(folder: pathlib.Path) -> Judge:
    """Load the miniature's kind of judge. Raises AdvUnlearnError when it cannot be read."""
    from .convnet import ConvJudge

    try:
        return ConvJudge.from_pretrained(folder)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise AdvUnlearnError(
            f"judge {str(folder)!r} could not be read ({error}); give a folder that ConvJudge.save_pretrained wrote"
        ) from error
