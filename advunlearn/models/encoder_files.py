"""Read and write a model's text encoder: one file, or one for each of Stable Diffusion XL's two encoders."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..config.training import ENCODER_NAMES, Encoders
from ..errors import AdvUnlearnError
from ..formats.detect import TEXT_PREFIX, UNET_PREFIX, detect_checkpoint_kind, get_size
from ..formats.sdxl_encoders import CLIP_G_PREFIX, extract_sdxl_encoder
from ..formats.text_encoders import extract_encoder, hash_encoder, load_state, save_encoder
from ..formats.weights import Weights, open_weights
from .text_encoder import clip_token_embeddings, encoder_parts

BASE_HASHES = "advunlearn.base_parts"  # metadata key: the hash of each encoder before training, by name

Check = Callable[[str, Mapping[str, str]], None]  # receives a file and its metadata; may raise


def load_encoder(
    path: str | pathlib.Path, like: nn.Module, check: Check | None = None
) -> tuple[nn.Module, dict[str, str]]:
    """Load weights into a copy of a text encoder.

    Args:
        path: a file, a folder, or a run's folder with a file for each of Stable Diffusion XL's encoders. The weights of
            a single encoder are loaded into the encoder of the same width, those of an SDXL checkpoint into both.
        like: the encoder to copy; it is unchanged.
        check: called with each file and its metadata; may raise to refuse it.

    Returns:
        the encoder, and the metadata of the last file.

    Raises AdvUnlearnError for a file that does not fit.
    """
    encoder = copy.deepcopy(like)
    metadata: dict[str, str] = {}
    for file in encoder_files(path):
        with open_weights(file) as weights:
            states = _read_states(file, weights, len(encoder_parts(like)))
            metadata = weights.metadata
        if check is not None:
            check(str(file), metadata)
        for tensors in states:
            load_state(matching_part(encoder, tensors), tensors, str(file))
    return encoder, metadata


def _read_states(file: pathlib.Path, weights: Weights, count: int) -> list[dict[str, Tensor]]:
    """Return the encoder in a file, or all `count` encoders of a Stable Diffusion XL checkpoint."""
    is_checkpoint = any(name.startswith((UNET_PREFIX, CLIP_G_PREFIX)) for name in weights.names)
    if count == 1 or not is_checkpoint:
        return [extract_encoder(weights)]
    if not any(name.startswith(CLIP_G_PREFIX) for name in weights.names):
        raise AdvUnlearnError(
            f"{file} is {detect_checkpoint_kind(weights.names, weights.shape)}, of which only CLIP-L could be read; "
            "give an SDXL checkpoint, a run's folder, or its clip_l.safetensors or clip_g.safetensors"
        )
    return [extract_sdxl_encoder(weights, name) for name in ENCODER_NAMES]


def encoder_files(path: str | pathlib.Path) -> list[pathlib.Path]:
    """Return the files of Stable Diffusion XL's encoders in a run's folder; otherwise the path itself."""
    files = [pathlib.Path(path) / f"{name}.safetensors" for name in ENCODER_NAMES]
    return [file for file in files if file.is_file()] or [pathlib.Path(path)]


def matching_part(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the part of an encoder that is as wide as some weights; the first part if there is none."""
    parts = list(encoder_parts(encoder).values())
    table = tensors.get(TEXT_PREFIX + "embeddings.token_embedding.weight")
    width = get_size(table.shape, -1) if table is not None else 0
    return next((part for part in parts if clip_token_embeddings(part).shape[1] == width), parts[0])


def save_encoders(
    folder: str | pathlib.Path,
    encoder: nn.Module,
    encoders: Encoders,
    metadata: Mapping[str, object],
    dtype: torch.dtype | None = None,
) -> list[pathlib.Path]:
    """Write the trained ones of Stable Diffusion XL's encoders: `clip_l.safetensors`, `clip_g.safetensors`.

    The file of an encoder that was not trained is deleted: an earlier run left it, so it does not match the other one.
    If `metadata` has `BASE_HASHES`, each file gets the hash of its encoder only. `dtype` is that of `save_encoder`.
    """
    written = []
    for name, part in encoder_parts(encoder).items():
        file = pathlib.Path(folder) / f"{name}.safetensors"
        if encoders not in ("both", name):
            file.unlink(missing_ok=True)
            continue
        written.append(save_encoder(file, part, select_part_metadata(metadata, name), dtype))
    return written


def select_part_metadata(metadata: Mapping[str, object], name: str) -> dict[str, object]:
    """Return the metadata of one encoder's file: of `BASE_HASHES`, if there, only the hash of this encoder."""
    shared = {key: value for key, value in metadata.items() if key != BASE_HASHES}
    hashes = metadata.get(BASE_HASHES)
    return shared | ({"advunlearn.base_sha256": hashes[name]} if isinstance(hashes, Mapping) else {})


def part_hashes(encoder: nn.Module) -> dict[str, str]:
    """Return the `hash_encoder` of each part of an encoder by name."""
    return {name: hash_encoder(part.state_dict()) for name, part in encoder_parts(encoder).items()}


def embedding_file(embeddings: Tensor, encoder: nn.Module) -> dict[str, Tensor]:
    """Return embeddings (k, D) as a textual inversion file's tensors: the columns of each encoder under its name."""
    parts = encoder_parts(encoder)
    columns = embeddings.split([clip_token_embeddings(part).shape[1] for part in parts.values()], -1)
    return {name: part.contiguous() for name, part in zip(parts, columns, strict=True)}
