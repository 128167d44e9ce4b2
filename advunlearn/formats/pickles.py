"""Pickles of weights: read without running code, and without allocating more than the file has bytes.

`torch.load` with `weights_only` builds tensors and containers alone. What a pickle names is read before it, from its
opcodes: names of training frameworks, which Lightning's checkpoints hold next to the tensors, are replaced by inert
classes; any other name is refused.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from .containers import ZIP_PICKLE

MAX_PICKLE = 16 << 20  # bytes of a zip's pickle; a Stable Diffusion checkpoint has 0.3 MB
MAX_OPCODES = 200_000  # a Stable Diffusion checkpoint has 50,000
MAX_REPEATS = 4  # the same bytes under several names: the published trainer stores its encoder twice
# Names of which tensors and containers are made. `torch.load` knows which of torch's are safe.
STANDARD_NAMES = (
    r"torch\.(\w+|_utils\._\w+|_tensor\._\w+|nn\.parameter\.\w+|storage\.\w+|serialization\._get_layout)"
    r"|collections\.(OrderedDict|Counter|defaultdict)|_codecs\.encode"
    r"|(builtins|__builtin__)\.(set|int|float|complex|bool|str|list|dict|tuple|object)"
)
# Modules whose names may be in a checkpoint: settings and counters, which are not needed to read its tensors.
INERT_MODULES = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "omegaconf",
    "numpy",
    "argparse",
    "pathlib",
    "typing",
    "transformers",
    "diffusers",
)
INERT_NAMES = ("collections.defaultdict", "builtins.int", "builtins.dict", "builtins.list", "builtins.object")
EMBEDDING_KEYS = ("string_to_param", "string_to_token")


class Inert:
    """Takes the place of a class that a pickle names: it accepts any arguments and holds nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class InertDict(Inert):
    """The same for a subclass of dict: torch fills plain ones alone."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return {}


def read_pickle(path: pathlib.Path, container: str) -> dict[str, Tensor]:
    """Return the tensors of a pickle by name. Tensors may share memory with each other.

    Raises AdvUnlearnError for a file that is damaged, names code, or whose tensors are larger than the file.
    """
    records = _read_records(path) if container == ZIP_PICKLE else None
    names = _find_names(path, container)
    require_known_names(names, path)
    try:
        with allow_names(names):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise AdvUnlearnError(_describe_failure(path, error)) from error
    tensors = _select_tensors(state, path)
    _require_plain(tensors, path)
    _require_proportionate(tensors, path, records)
    return tensors


def _refusal(path: pathlib.Path, reason: str, advice: str) -> str:
    return f"{path} cannot be read as weights alone ({reason}); no code in it was run. {advice}"


def _describe_failure(path: pathlib.Path, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"{path} does not fit into memory"
    return _refusal(path, "it is damaged, or holds more than tensors", _conversion(path))


def _conversion(path: pathlib.Path) -> str:
    """Return advice: the command that writes the tensors of a trusted pickle as safetensors."""
    out = path.with_suffix(".safetensors").name
    code = (
        f"import torch, safetensors.torch as s; d = torch.load('{path.name}', 'cpu', weights_only=False); "
        "d = d.get('state_dict', d); "
        f"s.save_file({{k: v.clone() for k, v in d.items() if isinstance(v, torch.Tensor)}}, '{out}')"
    )
    return f'If you trust whoever made it, this converts it, and runs the code in it: python -c "{code}"'


def _read_records(path: pathlib.Path) -> Counter[int]:
    """Return the sizes of a zip's records. Raises AdvUnlearnError for a compressed or damaged one, or another zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises more than BadZipFile
        raise AdvUnlearnError(_refusal(path, "it is damaged", "Download it again")) from error
    names = [entry.filename for entry in entries]
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise AdvUnlearnError(f"{path} is a TorchScript program, not weights; give the weights that it was made from")
    if sum(name.endswith("/data.pkl") for name in names) != 1:
        raise AdvUnlearnError(f"{path} is a ZIP archive without weights of PyTorch; unpack it, and give what is in it")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise AdvUnlearnError(
            f"{path} is compressed, which torch.save never does: {sum(entry.file_size for entry in entries)} bytes in "
            f"a file of {path.stat().st_size}; download it again from where it was made"
        )
    if sum(entry.file_size for entry in entries) > path.stat().st_size or len(set(names)) != len(names):
        raise AdvUnlearnError(_refusal(path, "its records overlap", "Download it again"))
    return Counter(entry.file_size for entry in entries)


def _find_names(path: pathlib.Path, container: str) -> set[str]:
    """Return the classes and functions that a pickle names, as 'module.name', from its opcodes."""
    names: set[str] = set()
    try:
        for stream in _open_streams(path, container):
            names |= _scan_opcodes(stream, path)
    except AdvUnlearnError:
        raise
    except Exception as error:  # pickletools raises anything for a damaged pickle
        raise AdvUnlearnError(_refusal(path, "it is damaged", "Download it again")) from error
    return names


def _open_streams(path: pathlib.Path, container: str) -> Iterable[Any]:
    if container == ZIP_PICKLE:
        with zipfile.ZipFile(path) as archive:
            entry = next(entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
            if entry.file_size > MAX_PICKLE:
                raise AdvUnlearnError(_refusal(path, f"{entry.file_size} bytes are no tensors", _conversion(path)))
            yield io.BytesIO(archive.read(entry))
        return
    with path.open("rb") as file:
        for _ in range(4):  # a magic number, the protocol, the system, and the object
            yield file


def _scan_opcodes(stream: Any, path: pathlib.Path) -> set[str]:
    names = set()
    texts: list[str] = []
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MAX_OPCODES:
            raise AdvUnlearnError(_refusal(path, "it holds far more than tensors", _conversion(path)))
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]
    return names


def require_known_names(names: Iterable[str], path: pathlib.Path) -> None:
    """Raise AdvUnlearnError that names what a pickle holds besides tensors, unless it is known to be harmless."""
    for name in sorted(names):
        if not re.fullmatch(STANDARD_NAMES, name) and name.split(".")[0] not in INERT_MODULES:
            reason = f"it holds {name[:100]!r}, which may run code"
            raise AdvUnlearnError(_refusal(path, reason, _conversion(path)))


def allow_names(names: Iterable[str]) -> contextlib.AbstractContextManager[object]:
    """Return a context in which `weights_only` puts inert objects in the place of classes of training frameworks."""
    inert = [name for name in names if name.split(".")[0] in INERT_MODULES or name in INERT_NAMES]
    safe_globals = getattr(torch.serialization, "safe_globals", None)  # since PyTorch 2.5
    if not inert or safe_globals is None:
        return contextlib.nullcontext()
    classes = []
    for name in inert:
        module, _, attribute = name.rpartition(".")
        base = InertDict if attribute.lower().endswith("dict") else Inert
        classes.append(type(attribute, (base,), {"__module__": module, "__qualname__": attribute}))
    return safe_globals(classes)


def _select_tensors(state: object, path: pathlib.Path) -> dict[str, Tensor]:
    if isinstance(state, Mapping) and any(key in state for key in EMBEDDING_KEYS):
        raise AdvUnlearnError(f"{path} is a textual inversion embedding, not an encoder: use it in a prompt")
    if isinstance(state, Tensor):
        raise AdvUnlearnError(f"{path} holds one tensor without a name, {tuple(state.shape)}; it is no encoder")
    if isinstance(state, Mapping):
        state = state.get("state_dict", state)
    if not isinstance(state, Mapping):
        raise AdvUnlearnError(f"{path} holds no tensors by name, but {type(state).__name__!r}")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _require_plain(tensors: Mapping[str, Tensor], path: pathlib.Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse or nested"
            raise AdvUnlearnError(f"{path}: {name!r} is a {kind} tensor, which holds no weights as such; save it dense")


def _require_proportionate(tensors: Mapping[str, Tensor], path: pathlib.Path, records: Counter[int] | None) -> None:
    """Raise AdvUnlearnError for tensors that are larger than what the file has for them."""
    size = path.stat().st_size
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    sizes = Counter(nbytes for nbytes in storages.values() if nbytes)
    is_more = bool(sizes - records) if records is not None else sum(storages.values()) > size
    if is_more:
        raise AdvUnlearnError(_refusal(path, "it promises more bytes than it has", "Download it again"))
    for name, tensor in tensors.items():
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise AdvUnlearnError(
                f"{path}: {name!r} is {tensor.nbytes} bytes made of {tensor.untyped_storage().nbytes()} (an expanded "
                "tensor); save it again with .contiguous()"
            )
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > MAX_REPEATS * size:
        raise AdvUnlearnError(f"{path} names the same bytes again and again: {total} bytes in a file of {size}")
