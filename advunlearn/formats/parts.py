"""A model's text encoder from files, also where it is two of them, as Stable Diffusion XL's is."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..config import Encoders
from ..dual_encoder import NAMES, DualTextEncoder
from .encoders import PREFIX, load_state, read_encoder, save_encoder


def load_encoder(path: str | pathlib.Path, like: Any) -> tuple[Any, dict[str, str]]:
    """Return a copy of the encoder `like` with the weights of a file, and the file's metadata.

    Of Stable Diffusion XL's two encoders that one gets the weights which is as wide; from a run's folder both do.
    """
    encoder = copy.deepcopy(like)
    metadata: dict[str, str] = {}
    for file in parts_of(path):
        tensors, metadata = read_encoder(file)
        load_state(part_as_wide(encoder, tensors), tensors, str(file))
    return encoder, metadata


def parts_of(path: str | pathlib.Path) -> list[pathlib.Path]:
    """Return the files of the text encoders in a run's folder on Stable Diffusion XL, or else the path itself."""
    found = [file for name in NAMES if (file := pathlib.Path(path) / f"{name}.safetensors").is_file()]
    return found or [pathlib.Path(path)]


def part_as_wide(encoder: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the one of Stable Diffusion XL's two encoders that is as wide as some tensors; any other encoder as is."""
    if not isinstance(encoder, DualTextEncoder):
        return encoder
    table = tensors.get(PREFIX + "embeddings.token_embedding.weight")
    width = table.shape[-1] if table is not None else 0
    first, second = encoder.encoders().values()
    return second if second.get_input_embeddings().weight.shape[1] == width else first


def save_encoders(
    folder: str | pathlib.Path, encoder: DualTextEncoder, which: Encoders, metadata: Mapping[str, Any]
) -> list[pathlib.Path]:
    """Write those of Stable Diffusion XL's encoders that trained, `clip_l.safetensors` and `clip_g.safetensors`."""
    own = {name: part for name, part in encoder.encoders().items() if which in ("both", name)}
    return [save_encoder(pathlib.Path(folder) / f"{name}.safetensors", part, metadata) for name, part in own.items()]
