"""Atomic file writes, file hashes, and the names of the files that a run and other libraries write."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

# A JSON object: of a config.json, a report, a run's settings.
JsonDict = dict[str, Any]
# CLIP's tokenizer, for checkpoints that bring none.
CLIP_TOKENIZER = pathlib.Path(__file__).parent / "data" / "clip_tokenizer"
PARTIAL = ".partial"  # suffix of a file that is being written
STATE = "state.pt"  # a run's checkpoint, from which it resumes
DONE = "train.json"  # a run's result, written when it is complete
MEASURED = ".measured.pt"  # suffix of the measurements of an evaluation that is not complete
SHA256_DIGITS = 64
# The files that save_pretrained writes into a folder.
TEXT_ENCODER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
UNET_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


@contextlib.contextmanager
def replace_atomically(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the name of a temporary file in the same folder, and rename it to `path` once it is written.

    Makes the folder. On an error the temporary file stays and `path` is unchanged.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    yield partial
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_atomic(path: str | pathlib.Path, write: bytes | Callable[[BinaryIO], object]) -> pathlib.Path:
    """Write a file so that a reader, or a kill, never meets half of it. Makes the folder.

    `write` is the content, or a function that writes it into an open file.
    """
    try:
        _write(path, write)
    except OSError as error:  # a full disk, for example, names no file
        raise OSError(error.errno, error.strerror, str(error.filename or path)) from error
    return pathlib.Path(path)


def _write(path: str | pathlib.Path, write: bytes | Callable[[BinaryIO], object]) -> None:
    with replace_atomically(path) as partial, partial.open("wb") as file:
        try:
            file.write(write) if isinstance(write, bytes) else write(file)
        except RuntimeError as error:  # torch.save raises this about a file that it could not finish
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def compute_digest(path: pathlib.Path, digits: int = SHA256_DIGITS) -> str:
    """Return a file's hash in hex: SHA-256 for 64 digits, otherwise git's (SHA-1 of the blob)."""
    if digits == SHA256_DIGITS:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
