"""A lock on an output folder, so that two runs never mix their files."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import AdvUnlearnError

LOCK = ".lock"  # holds the owner as JSON; the operating system frees the lock when its process ends, however it ends
BUSY = (BlockingIOError, PermissionError)


def _try_lock(file: BinaryIO) -> None:
    """Lock an open file. Raises one of `BUSY` if another process, or another open file of this one, has locked it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(1 << 20)  # beyond the content, which others must be able to read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def lock_folder(folder: pathlib.Path, remedy: str = "give another --out") -> Iterator[None]:
    """Hold a folder's lock; a lock file that a killed process left is taken over.

    Args:
        folder: the folder, which exists.
        remedy: advice in the error's message, besides waiting.

    Raises AdvUnlearnError that names the process that holds the lock. Where the file system has no locks there is none.
    """
    path = folder / LOCK
    file = _open_locked(path, remedy)
    try:
        file.truncate(0)
        file.seek(0)
        owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write(json.dumps(owner).encode())
        file.flush()
        yield
    finally:
        with contextlib.suppress(OSError):  # removed while it is still locked: nobody else can have the same file then
            path.unlink()
        file.close()
        with contextlib.suppress(OSError):  # Windows removes no open file
            if os.name == "nt":
                path.unlink()


def _open_locked(path: pathlib.Path, remedy: str) -> BinaryIO:
    while True:
        file = path.open("a+b")
        try:
            _try_lock(file)
        except BUSY as error:
            file.close()
            raise AdvUnlearnError(f"{_describe_owner(path)}; wait until it ends, or {remedy}") from error
        except OSError:  # a file system without locks
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its owner removed it in the meantime


def _describe_owner(path: pathlib.Path) -> str:
    try:
        owner = json.loads(path.read_bytes())
        who = f"by process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "by another process"
    return f"{path.parent} is in use {who}"
