"""Files of weights: safetensors, and pickles without running code."""

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

TensorShapes = Mapping[str, tuple[int, ...]]
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """An open file of weights. Names and shapes are available at once; a tensor is read on request."""

    source: str  # the file's name in messages
    names: tuple[str, ...]
    read: Callable[[str], Tensor]
    shape: Callable[[str], tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], source: str, metadata: Mapping[str, str] | None = None) -> Weights:
        """Return tensors in memory in the form of an open file."""
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
    """Return the file of weights for a path: the path itself, or the file that `save_pretrained` wrote into a folder.

    Args:
        path: a file or a folder.
        names: the file names to look for in a folder, in this order.
        inside: subfolders to look into after the folder itself.
        advice: the end of the error message: what to give instead.

    Raises AdvUnlearnError when there is no such file.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        candidates = [path / folder / name for folder in (".", *inside) for name in names]
        existing = next((file for file in candidates if file.is_file()), None)
        if existing is None:
            raise AdvUnlearnError(f"{path} holds none of {', '.join(names)}; give {advice}")
        return existing
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give {advice}")
    return path


def get_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def describe_mismatch(expected: TensorShapes, actual: TensorShapes, owner: str = "") -> str:
    """Describe the first difference between two sets of shapes: missing, unknown or mis-shaped tensors.

    Returns the end of a sentence that begins with a file's name, such as "lacks 2 of 196 tensors, first 'a'", or ""
    when all fit. `owner` is put before the number of expected tensors, such as "CLIP-L's ".
    """
    if missing := expected.keys() - actual.keys():
        return f"lacks {len(missing)} of {owner}{len(expected)} tensors, first {min(missing)!r}"
    if unknown := actual.keys() - expected.keys():
        return f"has {len(unknown)} more than {owner}{len(expected)} tensors, first {min(unknown)!r}"
    wrong = next((name for name in expected if actual[name] != expected[name]), None)
    return "" if wrong is None else f"has {wrong!r} in shape {actual[wrong]} and not {expected[wrong]}"


@contextlib.contextmanager
def open_weights(path: str | pathlib.Path) -> Iterator[Weights]:
    """Open a file of weights, or the one in a folder.

    Pickles are read with `weights_only`, which runs no code. Raises AdvUnlearnError when the file cannot be read.
    """
    path = find_weights_file(path)
    if path.suffix in PICKLE_SUFFIXES:
        yield Weights.from_tensors(_read_pickle(path), str(path))
        return
    try:
        file = safe_open(path, "pt").__enter__()
    except (SafetensorError, OSError) as error:
        raise AdvUnlearnError(
            f"{path} is not a readable safetensors file ({error}); give the file that training wrote, or download it "
            "again"
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


def _read_pickle(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        code = re.search(r"(?:GLOBAL|Unsupported class|Unsupported global:) (\S+)", str(error))
        reason = f"it holds {code[1]}, which may run code" if code else "it is damaged, or holds more"
        raise AdvUnlearnError(
            f"{path} cannot be read as weights alone ({reason}); no code in it was run. "
            "If you trust it, convert it to safetensors elsewhere"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return _copy_shared({str(name): value for name, value in state.items() if isinstance(value, Tensor)})


def _copy_shared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with others: pickles have them, and safetensors does not write them."""
    storages: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        is_separate = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        separate[name] = tensor if is_separate else tensor.clone()
    return separate
