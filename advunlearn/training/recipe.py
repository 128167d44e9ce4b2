"""The recipe of a trained encoder: the metadata that its file carries."""

from __future__ import annotations

import pathlib
import platform

import torch

from .. import __version__
from ..config.training import RunConfig
from ..files import JsonDict
from ..models.encoder_files import BASE_HASHES, part_hashes
from ..models.loading import TextToImage
from ..models.text_encoder import get_clip_skip


def environment() -> dict[str, str]:
    """Return the versions of the libraries, of Python and of the machine that results depend on."""
    import diffusers
    import transformers

    return {
        "advunlearn": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def recipe_metadata(model: TextToImage, run: RunConfig, **more: object) -> JsonDict:
    """Return the metadata of a trained encoder's file: concept, settings, original model, library versions.

    Args:
        model: the original model.
        run: the settings.
        more: further entries, for example `scores`; each key is prefixed with "advunlearn.".
    """
    metadata: JsonDict = {
        "advunlearn.version": __version__,
        "advunlearn.concept": run.concept.concept,
        "advunlearn.kind": run.concept.kind,
        "advunlearn.recipe": run.to_dict(),
        "advunlearn.base_model": pathlib.Path(model.name).name,
        "advunlearn.base_sha256": model.base_hash(),
        "advunlearn.environment": environment(),
    }
    metadata |= {f"advunlearn.{key}": value for key, value in more.items()}
    if clip_skip := get_clip_skip(model.text_encoder):
        metadata["advunlearn.clip_skip"] = clip_skip
    parts = part_hashes(model.text_encoder)
    if len(parts) > 1:
        metadata[BASE_HASHES] = parts
    return metadata
