"""Load a judge by its name on the command line."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from safetensors import SafetensorError

from .. import miniature
from ..config.base import Validated
from ..config.evaluation import ClassifierConfig, NudityConfig, ZeroShotConfig
from ..errors import AdvUnlearnError
from .base import Judge
from .folders import JudgeKind, detect_judge_kind

# The settings class of each kind of judge that has settings.
JUDGE_CONFIGS: dict[str, type[Validated]] = {
    "nudity": NudityConfig,
    "classifier": ClassifierConfig,
    "clip": ZeroShotConfig,
}


def parse_judge_name(name: str) -> tuple[JudgeKind, pathlib.Path]:
    """Return the kind and the folder of a judge.

    Args:
        name: "miniature", "nudity" (which has no folder), "clip:FOLDER", or a folder whose config.json tells its kind.

    Raises AdvUnlearnError for a folder that contains no judge.
    """
    if name == "miniature":
        return "miniature", miniature.judge_path()
    if name == "nudity":
        return "nudity", pathlib.Path()
    if name.startswith("clip:"):
        return "clip", pathlib.Path(name.removeprefix("clip:"))
    return detect_judge_kind(name), pathlib.Path(name)


def make_judge(
    name: str, make_settings: Callable[[type[Validated]], Validated] = lambda config: config(), device: str = "cpu"
) -> Judge:
    """Load a judge.

    Args:
        name: see `parse_judge_name`.
        make_settings: makes an object of the judge's settings class.
        device: device of a transformers model.

    Raises AdvUnlearnError when the judge cannot be loaded.
    """
    kind, folder = parse_judge_name(name)
    if kind == "miniature":
        return load_conv_judge(folder)
    settings = make_settings(JUDGE_CONFIGS[kind])
    if isinstance(settings, NudityConfig):
        from .nudity import NudityJudge

        return NudityJudge(settings)
    if isinstance(settings, ClassifierConfig):
        from .classifier import ClassifierJudge

        return ClassifierJudge(folder, settings, device)
    assert isinstance(settings, ZeroShotConfig)
    from .zero_shot import ZeroShotJudge

    return ZeroShotJudge(folder, settings, device)


def load_conv_judge(folder: pathlib.Path) -> Judge:
    """Load a judge of the miniature's kind. Raises AdvUnlearnError when it cannot be read."""
    from .convnet import ConvJudge

    try:
        return ConvJudge.from_pretrained(folder)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise AdvUnlearnError(
            f"judge {str(folder)!r} could not be read ({error}); give a folder that ConvJudge.save_pretrained wrote"
        ) from error
