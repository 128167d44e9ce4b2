"""Files of weights: safetensors, and pickles without running code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from safetensors import safe_open
from torch import Tensor

from ..errors import AdvUnlearnError, shorten_error
from ..files import TEXT_ENCODER_WEIGHTS
from .containers import SAFETENSORS, detect_container
from .pickles import read_pickle
from .tensors import TENSORS_HASH, require_finite, require_weight, update_digest

OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".ckpt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".json")
TensorShapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """An open file of weights. Names and shapes are available at once; a tensor is read on request."""

    source: str  # the file's name in messages
    names: tuple[str, ...]
    read_any: Callable[[str], Tensor]  # reads a tensor as it is, whatever it holds
    shape: Callable[[str], tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], source: str, metadata: Mapping[str, str] | None = None) -> Weights:
        """Return tensors in memory in the form of an open file. Those that share memory are copied when read."""
        uses = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())

        def read(name: str) -> Tensor:
            storage = tensors[name].untyped_storage()
            is_separate = storage.nbytes() == tensors[name].nbytes and uses[storage.data_ptr()] == 1
            return tensors[name] if is_separate else tensors[name].clone()

        return Weights(
            source=source,
            names=tuple(tensors),
            read_any=read,
            metadata=dict(metadata or {}),
            shape=lambda name: tuple(tensors[name].shape),
        )

    def read(self, name: str) -> Tensor:
        """Read a weight. Raises AdvUnlearnError for an integer tensor, a NaN or an infinity."""
        tensor = self.read_any(name)
        require_weight(name, tensor, self.source)
        return tensor

    def copy(self, name: str) -> Tensor:
        """Read a tensor of a part that is only copied: integers may be in it, but no NaN and no infinity."""
        tensor = self.read_any(name)
        require_finite(name, tensor, self.source)
        return tensor


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
    path = find_snapshot(pathlib.Path(path))
    if path.is_dir():
        existing = next((file for folder in (".", *inside) for file in _list_candidates(path / folder, names)), None)
        if existing is None:
            others = sorted(file.name for file in path.iterdir() if file.suffix in OTHER_WEIGHTS)[:3]
            found = f" (it has {', '.join(map(repr, others))})" if others else ""
            raise AdvUnlearnError(f"{path} holds none of {', '.join(names)}{found}; give {advice}")
        return existing
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give {advice}")
    return path


def find_snapshot(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of files in a repository's folder of the Hugging Face cache; any other path as it is.

    Raises AdvUnlearnError for a repository with several revisions, none of which is `main`.
    """
    if not (path / "snapshots").is_dir():
        return path
    main = path / "refs" / "main"
    if main.is_file() and (folder := path / "snapshots" / main.read_text(encoding="utf-8").strip()).is_dir():
        return folder
    folders = sorted(folder for folder in (path / "snapshots").iterdir() if folder.is_dir())
    if len(folders) == 1:
        return folders[0]
    raise AdvUnlearnError(f"{path} holds {len(folders)} revisions in its folder snapshots; give one of them")


def _list_candidates(folder: pathlib.Path, names: Sequence[str]) -> Iterator[pathlib.Path]:
    """Yield the files of weights in a folder, the best first: whole, then in shards, then variants such as fp16."""
    for name in names:
        stem, _, ending = name.rpartition(".")
        if (folder / name).is_file():
            yield folder / name
        yield from sorted(folder.glob(f"{name}.index.json"))
        variants = [*folder.glob(f"{stem}.*.{ending}"), *folder.glob(f"{name}.index.*.json")]
        # Sorted, bf16 comes before fp16, which has more digits.
        yield from sorted(variants, key=lambda file: ("fp16" not in file.name, "non_ema" in file.name, file.name))


def _open_shards(index: pathlib.Path, stack: contextlib.ExitStack) -> Weights:
    """Open the files that an index names, as one. Raises AdvUnlearnError for a broken index and a missing file."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(file): index.with_name(str(file)) for file in places.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdvUnlearnError(f"{index} is no index of weights ({shorten_error(error)}); download it again") from error
    if strange := [name for name, file in files.items() if pathlib.PurePath(name).name != name or not file.is_file()]:
        raise AdvUnlearnError(f"{index} names {strange[0]!r}, which is not next to it; download the complete folder")
    shards = {name: _open_file(file, stack) for name, file in files.items()}
    for shard in shards.values():
        _require_hash(shard)
    if lost := [name for name, file in places.items() if name not in shards[str(file)].names]:
        raise AdvUnlearnError(f"{index} names {lost[0]!r}, which is not in {places[lost[0]]!r}; download it again")
    return Weights(
        source=str(index),
        names=tuple(places),
        read_any=lambda name: shards[str(places[name])].read_any(name),
        shape=lambda name: shards[str(places[name])].shape(name),
    )


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
    """Open a file of weights, or the one in a folder. Everything that reads weights reads them here.

    Pickles are read with `weights_only`, which runs no code. A file that states the SHA-256 of its tensors, as this
    library's do, is read once more to compare it.

    Raises AdvUnlearnError, whatever is wrong with the file: another kind of file, damage, or tensors that are larger
    than the file.
    """
    path = find_weights_file(path)
    with contextlib.ExitStack() as stack:
        weights = _open_shards(path, stack) if path.suffix == ".json" else _open_file(path, stack)
        _require_hash(weights)
        yield weights


def _open_file(path: pathlib.Path, stack: contextlib.ExitStack) -> Weights:
    container = detect_container(path)
    if container != SAFETENSORS:
        return Weights.from_tensors(read_pickle(path, container), str(path))
    try:
        file = stack.enter_context(safe_open(path, "pt"))
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    except Exception as error:  # the library raises more than SafetensorError
        raise AdvUnlearnError(_describe_unreadable(path, error)) from error

    def read(name: str) -> Tensor:
        try:
            return file.get_tensor(name)
        except Exception as error:
            raise AdvUnlearnError(f"{path}: {name!r} cannot be read ({shorten_error(error)})") from error

    return Weights(source=str(path), names=tuple(shapes), read_any=read, shape=shapes.__getitem__, metadata=metadata)


def _describe_unreadable(path: pathlib.Path, error: Exception) -> str:
    return (
        f"{path} is not a readable safetensors file ({shorten_error(error)}); give the file that training wrote, or "
        "download it again"
    )


def _require_hash(weights: Weights) -> None:
    """Raise AdvUnlearnError if a file states another SHA-256 of its tensors than they have."""
    stated = weights.metadata.get(TENSORS_HASH)
    if stated is None:
        return
    digest = hashlib.sha256()
    for name in sorted(weights.names):
        update_digest(digest, name, weights.read_any(name))
    if digest.hexdigest() != stated:
        raise AdvUnlearnError(
            f"{weights.source} is damaged or was changed: the SHA-256 of its tensors is {digest.hexdigest()[:12]}..., "
            f"and it states {stated[:12]}... ({TENSORS_HASH}); take an intact copy, or make it again"
        )
