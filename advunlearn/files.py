"""Atomic file writes, file hashes, and the names of the files that a run and other libraries write."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from .errors import AdvUnlearnError

# A JSON object: of a config.json, a report, a run's settings.
JsonDict = dict[str, Any]
# CLIP's tokenizer, for checkpoints that bring none.
CLIP_TOKENIZER = pathlib.Path(__file__).parent / "data" / "clip_tokenizer"
PARTIAL = ".partial"  # suffix of a file that is being written
STATE = "state.pt"  # a run's checkpoint, from which it resumes
DONE = "train.json"  # a run's result, written when it is complete
SNAPSHOTS = "snapshots"  # folder of a run's intermediate encoders and their record
MEASURED = ".measured.pt"  # suffix of the measurements of an evaluation that is not complete
SHA256_DIGITS = 64
# Names of devices on Windows, with any ending: a file called nul.txt cannot be made there, and its content is lost.
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789\xb9\xb2\xb3")}
# Parts of a name that ComfyUI replaces when it saves a file.
DATE_PATTERN = r"%(year|month|day|hour|minute|second)%"
MAX_NAME = 200  # bytes; file systems take 255, and endings are added
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


def find_name_fault(name: object, folders: bool = False, reserved: int = 0) -> str:
    """Return why a user's name cannot be that of a new file on every system; "" for a valid name.

    A name consists of letters, digits, '.', '_' and '-'. It begins with none of '.' and '-', ends without a dot, is no
    device of Windows, and is not too long for a file system.

    Args:
        name: the name, without ending.
        folders: whether the name is one that a host completes: with folders in front, separated by '/', with spaces
            inside, and with ComfyUI's patterns of the date, such as %year%.
        reserved: bytes that the names derived from this one add to it.
    """
    text = name if isinstance(name, str) else ""
    for part in re.sub(DATE_PATTERN, "0", text).split("/") if folders else [text]:
        if not re.fullmatch(r"\w([\w. -]*[\w-])?" if folders else r"\w([\w.-]*[\w-])?", part):
            allowed = "letters, digits, '.', '_', '-'" + ", spaces, %year% and the like, and '/' for folders" * folders
            return (
                f"the name {shorten(name)} is invalid; use {allowed}; begin with a letter, a digit or '_', and do not "
                "end with '.'"
            )
        if part.partition(".")[0].upper() in DEVICES:
            return f"the name {shorten(name)} is that of a device on Windows; choose another one"
        if len(part.encode(errors="replace")) > MAX_NAME - reserved:
            return f"the name {shorten(name)} is longer than {MAX_NAME - reserved} bytes; choose a shorter one"
    return ""


def shorten(name: object, length: int = 60) -> str:
    """Return a name in quotes for an error message, cut if it is long."""
    text = repr(name)
    return text if len(text) <= length else text[:length] + "...'"


def check_name(name: str, folders: bool = False, reserved: int = 0) -> str:
    """Return a valid name. Raises AdvUnlearnError for any other, see `find_name_fault`."""
    if fault := find_name_fault(name, folders, reserved):
        raise AdvUnlearnError(fault)
    return name


def find_inside(name: str, roots: Sequence[str | pathlib.Path], file: str) -> pathlib.Path | None:
    """Return the folder `name` of one of the roots that holds a file, or None if there is none.

    Args:
        name: a path relative to a root, or an absolute path inside one. Links inside a root may point anywhere.
        roots: the allowed folders.
        file: name of the file that the folder must hold.

    Raises AdvUnlearnError for a path outside of all roots.
    """
    absolute = [pathlib.Path(os.path.abspath(root)) for root in roots]
    inside = [path for root in absolute if (path := pathlib.Path(os.path.abspath(root / name))).is_relative_to(root)]
    if not inside:
        places = ", ".join(map(str, absolute))
        raise AdvUnlearnError(f"{shorten(name, 200)} is outside of {places}; put the folder there, or a link to it")
    return next((path for path in inside if (path / file).is_file()), None)
