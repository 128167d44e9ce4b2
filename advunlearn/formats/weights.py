"""Files of weights, whatever is in them: safetensors, and pickles as weights alone."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import AdvUnlearnError
from ..files import TEXT_ENCODER_WEIGHTS

Shapes = Mapping[str, tuple[int, ...]]
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """An open file of weights. Names and shapes are known at once; a tensor is read when it is asked for."""

    source: str  # what a message calls it
    names: tuple[str, ...]
    read: Callable[[str], Tensor]
    shape: Callable[[str], tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], source: str, metadata: Mapping[str, str] | None = None) -> Weights:
        """Return tensors that are in memory already as if they were a file."""
        return Weights(
            source=source,
            names=tuple(tensors),
            read=tensors.__getitem__,
            metadata=dict(metadata or {}),
            shape=lambda name: tuple(tensors[name].shape),
        )


def find_weights_file(
    path: str | pathlib.Path,
    names: Sequence[str] = TEXT_ENCODER_WEIGHTS,
    inside: Sequence[str] = ("text_encoder",),
    advice: str = "a text encoder's folder, or the encoder.safetensors that a training run wrote",
) -> pathlib.Path:
    """Return the file of weights that a path names: itself, or what `save_pretrained` wrote into a folder.

    `names` are the files that a folder, or those `inside` it, may have; `advice` is what a user should give instead.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        places = [path / sub / name for sub in (".", *inside) for name in names]
        found = [place for place in places if place.is_file()]
        if not found:
            raise AdvUnlearnError(f"{path} holds none of {', '.join(names)}; give {advice}")
        return found[0]
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give {advice}")
    return path


def describe_mismatch(needed: Shapes, given: Shapes, whose: str = "") -> str:
    """Return in words what tensors lack, have too many, or have in another shape; "" where all fit."""
    for word, names in (("lacks", needed.keys() - given.keys()), ("has unknown", given.keys() - needed.keys())):
        if names:
            return f"{word} {len(names)} of {whose}{len(needed)} tensors, first {min(names)!r}"
    wrong = next((name for name in needed if given[name] != needed[name]), None)
    return "" if wrong is None else f"has {wrong!r} in shape {given[wrong]} and not {needed[wrong]}"


@contextlib.contextmanager
def open_weights(path: str | pathlib.Path) -> Iterator[Weights]:
    """Open a file of weights, or the one that a folder holds.

    Pickles are read through `weights_only`, which runs no code. Raises AdvUnlearnError when nothing can be read.
    """
    path = find_weights_file(path)
    if path.suffix in PICKLES:
        yield Weights.from_tensors(_unpickled(path), str(path))
        return
    try:
        file = safe_open(path, "pt").__enter__()
    except (SafetensorError, OSError) as error:
        raise AdvUnlearnError(
            f"{path} is not a readable safetensors file ({error}); give the file that training wrote, or fetch it again"
        ) from error
    try:
        yield Weights(
            source=str(path),
            names=tuple(file.keys()),
            read=file.get_tensor,
            metadata=dict(file.metadata() or {}),
            shape=lambda name: tuple(file.get_slice(name).get_shape()),
        )
    finally:
        file.__exit__(None, None, None)


def _unpickled(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        thing = re.search(r"(?:GLOBAL|Unsupported class|Unsupported global:) (\S+)", str(error))
        reason = f"it holds {thing[1]}, which may run code" if thing else "it is damaged, or holds more"
        raise AdvUnlearnError(
            f"{path} cannot be read as weights alone ({reason}); nothing in it was run. "
            "Convert it to safetensors where you trust it"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return _unshared({str(name): value for name, value in state.items() if isinstance(value, Tensor)})


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which no two are in the same memory, as safetensors wants them; pickles have such pairs."""
    seen, out = set(), {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        out[name] = tensor if alone else tensor.clone()
    return out
