"""Folders in the form of transformers: what is in one, and reading it without any hub."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Literal

from torch import Tensor

from ..errors import AdvUnlearnError
from .base import pixels

Kind = Literal["miniature", "classifier", "clip"]
WANTED = "give a folder that ConvJudge.save_pretrained wrote, or one of transformers with an image classifier or a CLIP"


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """Return a folder's config.json. Raises AdvUnlearnError when there is none, or none that can be read."""
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        found = "no config.json there" if path.parent.is_dir() else "no such folder"
        raise AdvUnlearnError(f"judge {str(folder)!r}: {found}; {WANTED}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdvUnlearnError(f"judge {str(folder)!r}: its config.json is not JSON ({error}); {WANTED}") from error
    if not isinstance(config, dict):
        raise AdvUnlearnError(f"judge {str(folder)!r}: its config.json is a {type(config).__name__}; {WANTED}")
    return config


def kind_of(folder: str | pathlib.Path) -> Kind:
    """Return which judge a folder holds, by its config.json. Raises AdvUnlearnError for anything else."""
    config = read_config(folder)
    classes = config.get("architectures") or []
    if {"objects", "styles", "backgrounds"} <= set(config):
        return "miniature"
    if any("ForImageClassification" in name for name in classes):
        return "classifier"
    if config.get("model_type") == "clip" and (not classes or "CLIPModel" in classes):
        return "clip"
    found = ", ".join(classes) or config.get("model_type") or "neither an architecture nor a model_type"
    raise AdvUnlearnError(f"judge {str(folder)!r}: its config.json names {found}; {WANTED}")


def load_pretrained(kind: Any, folder: str | pathlib.Path, device: str) -> Any:
    """Return a transformers model in fp32 and evaluation mode, every weight of it from the folder.

    Raises AdvUnlearnError when it cannot be read, or lacks weights, which would be random.
    """
    from safetensors import SafetensorError

    read_config(folder)
    try:
        model, loading = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise AdvUnlearnError(f"judge {str(folder)!r} could not be read ({error}); {WANTED}") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise AdvUnlearnError(
            f"judge {str(folder)!r} lacks {len(missing)} weights, first {missing[0]!r}; they would be random: give the "
            "folder of a model that was trained for this"
        )
    return model.float().to(device).train(False).requires_grad_(False)


class Preprocessor:
    """A folder's own image preparation, on PIL and numpy: torchvision is not needed, and changes no number."""

    def __init__(self, folder: str | pathlib.Path) -> None:
        import transformers

        known = int(transformers.__version__.split(".")[0]) >= 5
        how: dict[str, Any] = {"backend": "pil"} if known else {"use_fast": False}
        try:
            self.processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, **how)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise AdvUnlearnError(
                f"judge {str(folder)!r}: its preprocessor_config.json could not be used ({error}); copy the one that "
                "came with the model"
            ) from error

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return pictures (B, 3, H, W) in [0, 1] as batches of pixel values (b, 3, h, w)."""
        options: dict[str, Any] = {"return_tensors": "pt", "input_data_format": "channels_last"}
        return [self.processor(images=part, **options)["pixel_values"] for part in pixels(images)]
