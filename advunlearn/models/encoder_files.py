"""A model's text encoder from files, also where it is two of them, as Stable Diffusion XL's is."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..config.training import ENCODER_NAMES, Encoders
from ..errors import AdvUnlearnError
from ..formats.detect import UNET_PREFIX, detect_checkpoint_kind
from ..formats.openclip import CLIP_G_PREFIX, extract_sdxl_encoder
from ..formats.text_encoders import (
    TEXT_PREFIX,
    extract_encoder,
    hash_encoder,
    load_state,
    save_encoder,
)
from ..formats.weights import open_weights
from .sdxl_text_encoder import DualTextEncoder

BASES = "advunlearn.base_parts"


Check = Callable[[str, Mapping[str, str]], None]  # is given a file and its metadata; may raise


def load_encoder(path: str | pathlib.Path, like: Any, check: Check | None = None) -> tuple[Any, dict[str, str]]:
    """Return a copy of the encoder `like` with the weights of a file, and the file's metadata.

    Of Stable Diffusion XL's two encoders that one gets the weights which is as wide; from a run's folder and from a
    whole checkpoint both do.
    Raises AdvUnlearnError for a file that does not fit; `check` may refuse more.
    """
    encoder = copy.deepcopy(like)
    metadata: dict[str, str] = {}
    for file in parts_of(path):
        with open_weights(file) as weights:
            whole = isinstance(like, DualTextEncoder) and any(
                name.startswith((UNET_PREFIX, CLIP_G_PREFIX)) for name in weights.names
            )
            if whole and not any(name.startswith(CLIP_G_PREFIX) for name in weights.names):
                raise AdvUnlearnError(
                    f"{file} is {detect_checkpoint_kind(weights.names, weights.shape)}, of which CLIP-L alone could be "
                    "read; give an SDXL checkpoint, a run's folder, or its clip_l.safetensors or clip_g.safetensors"
                )
            found = (
                [extract_sdxl_encoder(weights, name) for name in ENCODER_NAMES] if whole else [extract_encoder(weights)]
            )
            metadata = weights.metadata
        if check is not None:
            check(str(file), metadata)
        for tensors in found:
            load_state(part_as_wide(encoder, tensors), tensors, str(file))
    return encoder, metadata


def parts_of(path: str | pathlib.Path) -> list[pathlib.Path]:
    """Return the files of the text encoders in a run's folder on Stable Diffusion XL, or else the path itself."""
    found = [file for name in ENCODER_NAMES if (file := pathlib.Path(path) / f"{name}.safetensors").is_file()]
    return found or [pathlib.Path(path)]


def part_as_wide(encoder: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the one of Stable Diffusion XL's two encoders that is as wide as some tensors; any other encoder as is."""
    if not isinstance(encoder, DualTextEncoder):
        return encoder
    table = tensors.get(TEXT_PREFIX + "embeddings.token_embedding.weight")
    width = table.shape[-1] if table is not None else 0
    first, second = encoder.encoders().values()
    return second if second.get_input_embeddings().weight.shape[1] == width else first


def save_encoders(
    folder: str | pathlib.Path, encoder: DualTextEncoder, which: Encoders, metadata: Mapping[str, Any]
) -> list[pathlib.Path]:
    """Write those of Stable Diffusion XL's encoders that trained, `clip_l.safetensors` and `clip_g.safetensors`.

    Of an older run in that folder the file of one that did not train is deleted: the two would not belong together.
    `metadata` may have `BASES`, the hash of each encoder before training; a file gets its own.
    """
    about = {k: v for k, v in metadata.items() if k != BASES}
    written = []
    for name, part in encoder.encoders().items():
        file = pathlib.Path(folder) / f"{name}.safetensors"
        if which not in ("both", name):
            file.unlink(missing_ok=True)
            continue
        own = {"advunlearn.base_sha256": metadata[BASES][name]} if BASES in metadata else {}
        written.append(save_encoder(file, part, about | own))
    return written


def part_hashes(encoder: Any) -> dict[str, str]:
    """Return the `hash_encoder` of each of two encoders by name; of one there are none."""
    if not isinstance(encoder, DualTextEncoder):
        return {}
    return {name: hash_encoder(part.state_dict()) for name, part in encoder.encoders().items()}


def embedding_file(found: Tensor, encoder: Any) -> dict[str, Tensor]:
    """Return embeddings (k, D) as a textual inversion's file has them, those of each encoder under its name."""
    if not isinstance(encoder, DualTextEncoder):
        return {ENCODER_NAMES[0]: found.contiguous()}
    parts = found.split([table.shape[1] for table in encoder.tables()], -1)
    return {name: part.contiguous() for name, part in zip(ENCODER_NAMES, parts, strict=True)}
