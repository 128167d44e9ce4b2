"""Files that are whole or not there."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO

PARTIAL = ".partial"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # what save_pretrained writes into a folder


def write_atomic(path: str | pathlib.Path, write: bytes | Callable[[BinaryIO], object]) -> pathlib.Path:
    """Write a file beside its name and move it there: a reader, or a kill, never meets half of it. Makes the folder."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        if isinstance(write, bytes):
            file.write(write)
        else:
            write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path
