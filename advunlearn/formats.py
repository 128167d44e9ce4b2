"""The one place that reads and writes text encoders. Strict: keys and shapes are checked before a weight is used.

transformers 5 dropped the `text_model.` prefix that every other loader of CLIP-L expects; what is written here always
carries it, whatever the installed version, and both layouts are read.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import AdvUnlearnError

PREFIX, PROJECTION = "text_model.", "text_projection.weight"
FORMAT = "advunlearn.text_encoder.v1"


def portable_state(encoder: Any) -> dict[str, Tensor]:
    """Return an encoder's weights under `text_model.` keys, with the identity projection that loaders ask for."""
    state = {}
    for name, tensor in encoder.state_dict().items():
        if not name.endswith("position_ids"):
            state[PREFIX + name.removeprefix(PREFIX)] = tensor.detach().cpu().contiguous()
    width, dtype = encoder.config.hidden_size, next(iter(state.values())).dtype
    state[PROJECTION] = torch.eye(width, dtype=dtype)
    return state


def load_state(encoder: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights under either layout into an encoder, all or nothing.

    Raises AdvUnlearnError that names the first missing, unknown or mis-shaped key.
    """
    own = encoder.state_dict()
    bare = {name.removeprefix(PREFIX): name for name in own if not name.endswith("position_ids")}
    given = {
        k.removeprefix(PREFIX): v for k, v in tensors.items() if k != PROJECTION and not k.endswith("position_ids")
    }
    for word, keys in (("lacks", bare.keys() - given.keys()), ("has unknown", given.keys() - bare.keys())):
        if keys:
            raise AdvUnlearnError(
                f"{source} {word} {len(keys)} of {len(bare)} tensors, first {min(keys)!r}: it is not a text encoder "
                "of this model's shape; give a CLIP text encoder trained from the same base"
            )
    for name, tensor in given.items():
        if tensor.shape != own[bare[name]].shape:
            raise AdvUnlearnError(
                f"{source}: {name!r} has shape {tuple(tensor.shape)}, this model needs {tuple(own[bare[name]].shape)}"
            )
    encoder.load_state_dict({bare[k]: v.to(own[bare[k]].dtype) for k, v in given.items()}, strict=False)


def save_encoder(path: str | pathlib.Path, encoder: Any, metadata: Mapping[str, Any]) -> pathlib.Path:
    """Write one safetensors file, atomically; `metadata` values that are not text are stored as JSON."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in metadata.items()}
    partial = path.with_name(path.name + ".partial")
    # `save_file` would make a file that only its owner can read.
    partial.write_bytes(save(portable_state(encoder), {"format": "pt", "advunlearn.format": FORMAT, **text}))
    os.replace(partial, path)
    return path


def read_encoder(path: str | pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises AdvUnlearnError when the file is missing, is no safetensors file, or holds no CLIP text encoder.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give the encoder.safetensors that a training run wrote")
    try:
        with safe_open(path, "pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in list(file.keys())}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise AdvUnlearnError(
            f"{path} is not a readable safetensors file ({error}); give encoder.safetensors"
        ) from error
    if not any(k.removeprefix(PREFIX).startswith("encoder.layers.0.") for k in tensors):
        first = min(tensors, default="nothing")
        raise AdvUnlearnError(f"{path} holds no CLIP text encoder (its first tensor is {first!r})")
    return tensors, metadata


def load_encoder(path: str | pathlib.Path, like: Any) -> tuple[Any, dict[str, str]]:
    """Return a copy of the encoder `like` with the weights of a file, and the file's metadata."""
    import copy

    tensors, metadata = read_encoder(path)
    encoder = copy.deepcopy(like)
    load_state(encoder, tensors, str(path))
    return encoder, metadata
