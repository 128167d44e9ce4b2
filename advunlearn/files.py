"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL = ".partial"
STATE, DONE = "state.pt", "train.json"  # of a run: what it goes on from, and what says that it is at its end
MEASURED = ".measured.pt"  # of an evaluation, what it has measured so far
SHA256 = 64  # its hex digits
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # what save_pretrained writes into a folder, of a text encoder
UNET_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # and of a UNet


@contextlib.contextmanager
def replace_atomically(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a file beside a name, and move it there once it is written; on an error it is left as it is."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    yield partial
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_atomic(path: str | pathlib.Path, write: bytes | Callable[[BinaryIO], object]) -> pathlib.Path:
    """Write a file beside its name and move it there: a reader, or a kill, never meets half of it. Makes the folder."""
    with replace_atomically(path) as partial, partial.open("wb") as file:
        try:
            file.write(write) if isinstance(write, bytes) else write(file)
        except RuntimeError as error:  # torch.save, interrupted, complains of the file that it could not end
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
    return pathlib.Path(path)


def write_safetensors(
    path: str | pathlib.Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> pathlib.Path:
    """Write contiguous tensors to a safetensors file as `write_atomic` does, without a copy of all in memory."""
    from safetensors.torch import save_file

    with replace_atomically(path) as partial:
        partial.write_bytes(b"")
        mode = partial.stat().st_mode  # `save_file` makes a file that only its owner can read
        save_file(dict(tensors), partial, dict(metadata))
        partial.chmod(mode)
    return pathlib.Path(path)


def compute_digest(path: pathlib.Path, digits: int = SHA256) -> str:
    """Return a file's hash of the hub's kind that has so many hex digits: sha256, or git's (SHA-1 of a blob)."""
    if digits == SHA256:
        made = hashlib.sha256()
    else:
        made = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            made.update(block)
    return made.hexdigest()
