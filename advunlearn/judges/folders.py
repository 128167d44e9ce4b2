"""Folders in transformers' format: detect the kind of judge in one, and load it from local files only."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Literal

from torch import Tensor

from ..errors import AdvUnlearnError
from ..files import JsonDict
from .base import split_pixels

JudgeKind = Literal["miniature", "nudity", "classifier", "clip"]
EXPECTED = (
    "give a folder written by ConvJudge.save_pretrained, or a transformers folder with an image classifier or a CLIP"
)


def read_judge_config(folder: str | pathlib.Path) -> JsonDict:
    """Return the content of a folder's config.json. Raises AdvUnlearnError when it is missing or cannot be read."""
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        problem = "no config.json there" if path.parent.is_dir() else "no such folder"
        raise AdvUnlearnError(f"judge {str(folder)!r}: {problem}; {EXPECTED}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdvUnlearnError(f"judge {str(folder)!r}: its config.json is not JSON ({error}); {EXPECTED}") from error
    if not isinstance(config, dict):
        raise AdvUnlearnError(f"judge {str(folder)!r}: its config.json is a {type(config).__name__}; {EXPECTED}")
    return config


def detect_judge_kind(folder: str | pathlib.Path) -> JudgeKind:
    """Return the kind of judge in a folder, by its config.json. Raises AdvUnlearnError when it contains no judge."""
    config = read_judge_config(folder)
    classes = config.get("architectures") or []
    if {"objects", "styles", "backgrounds"} <= set(config):
        return "miniature"
    if any("ForImageClassification" in name for name in classes):
        return "classifier"
    if config.get("model_type") == "clip" and (not classes or "CLIPModel" in classes):
        return "clip"
    found = ", ".join(classes) or config.get("model_type") or "neither an architecture nor a model_type"
    raise AdvUnlearnError(f"judge {str(folder)!r}: its config.json names {found}; {EXPECTED}")


def load_pretrained(model_class: Any, folder: str | pathlib.Path, device: str) -> Any:
    """Load a transformers model in fp32 and evaluation mode.

    Raises AdvUnlearnError when it cannot be read, or lacks weights, which transformers would draw at random.
    """
    from safetensors import SafetensorError

    read_judge_config(folder)
    try:
        model, loading = model_class.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise AdvUnlearnError(f"judge {str(folder)!r} could not be read ({error}); {EXPECTED}") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise AdvUnlearnError(
            f"judge {str(folder)!r} lacks {len(missing)} weights, first {missing[0]!r}; they would be random; give the "
            "folder of a model that was trained for this"
        )
    return model.float().to(device).train(False).requires_grad_(False)


class Preprocessor:
    """A folder's image preprocessing, computed by PIL and numpy, so that torchvision changes no value if installed."""

    def __init__(self, folder: str | pathlib.Path) -> None:
        import transformers

        version = int(transformers.__version__.split(".")[0])
        options: JsonDict = {"backend": "pil"} if version >= 5 else {"use_fast": False}
        try:
            self.processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, **options)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise AdvUnlearnError(
                f"judge {str(folder)!r}: its preprocessor_config.json could not be used ({error}); copy the one that "
                "came with the model"
            ) from error

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return images (B, 3, H, W) in [0, 1] as batches of pixel values (b, 3, h, w)."""
        options: JsonDict = {"return_tensors": "pt", "input_data_format": "channels_last"}
        return [self.processor(images=part, **options)["pixel_values"] for part in split_pixels(images)]
