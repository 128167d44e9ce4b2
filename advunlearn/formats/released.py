"""Download the text encoders that the method's authors released, from the Hugging Face hub.

Each is a CLIPTextModel folder in the repository OPTML-Group/AdvUnlearn. The hub states a hash for every file (SHA-256
for a large file, git's SHA-1 for a small one). A file is checked against it before it gets its name, and a .sha256 file
is written next to the weights. This detects a broken transfer, not a malicious hub; the weights are in any case read
without running code.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import AdvUnlearnError, shorten_error
from ..files import (
    PARTIAL,
    SHA256_DIGITS,
    TEXT_ENCODER_WEIGHTS,
    compute_digest,
    replace_atomically,
    write_atomic,
)

RELEASED_REPO = "OPTML-Group/AdvUnlearn"
RELEASED_ENCODERS = ("nudity", "vangogh", "church", "garbage_truck", "parachute", "tench")
METADATA_TIMEOUT = 20.0  # seconds
GIT_SHA1_DIGITS = 40
MAX_TRANSFERS = 5  # of one file, if each breaks off; recent versions of huggingface_hub resume by themselves

ByteProgress = Callable[[int, int], object]  # bytes received, bytes in total


class HubError(Exception):
    """The hub cannot be reached, lacks a file, or does not send all of it."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file on the hub at a fixed commit, with its size in bytes and its hash as the hub states them."""

    name: str
    url: str
    size: int
    digest: str
    commit: str


def get_subfolder(name: str) -> str:
    """Return an encoder's folder in the repository and on disk. Raises AdvUnlearnError for an unknown name."""
    if name not in RELEASED_ENCODERS:
        raise AdvUnlearnError(f"no released encoder is called {name!r}; there are {', '.join(RELEASED_ENCODERS)}")
    return f"{name}_unlearned"


def find_fetched(name: str, to: str | pathlib.Path) -> pathlib.Path | None:
    """Return the weights of a released encoder that was downloaded into the folder `to` before, or None."""
    candidates = [pathlib.Path(to) / get_subfolder(name) / file for file in TEXT_ENCODER_WEIGHTS]
    return next((path for path in candidates if path.is_file()), None)


def fetch_encoder(
    name: str, to: str | pathlib.Path, on_progress: ByteProgress | None = None, endpoint: str | None = None
) -> pathlib.Path:
    """Return the weights file of a released encoder; download it into a folder of `to` unless it is there.

    Args:
        name: one of `RELEASED_ENCODERS`.
        to: the folder that gets a subfolder with config.json and the weights.
        on_progress: called with the bytes received and their total. An exception that it raises ends the download and
            propagates.
        endpoint: the hub's address ($HF_ENDPOINT by default).

    Raises AdvUnlearnError for an unknown name, without a network, and for a file whose hash is not the hub's.
    """
    if existing := find_fetched(name, to):
        return existing
    folder = pathlib.Path(to) / get_subfolder(name)
    try:
        config = find_remote_file(folder.name, ("config.json",), endpoint)
        weights = find_remote_file(folder.name, TEXT_ENCODER_WEIGHTS, endpoint, config.commit)
        # The weights come last: a folder that has them is complete.
        download(config, folder)
        return download(weights, folder, on_progress)
    except HubError as error:
        raise AdvUnlearnError(
            f"the released encoder {name!r} could not be fetched ({error}); try again, or put config.json and "
            f"{' or '.join(TEXT_ENCODER_WEIGHTS)} from https://huggingface.co/{RELEASED_REPO}/tree/main/{folder.name} "
            f"into {folder} yourself"
        ) from error


def find_remote_file(
    folder: str, names: tuple[str, ...], endpoint: str | None = None, revision: str | None = None
) -> RemoteFile:
    """Ask the hub about the first of several files that exists in a folder, at a revision (main by default).

    Raises HubError when the hub cannot be asked, has none of them, or states no size, hash or commit.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import EntryNotFoundError

    for name in names:
        url = hf_hub_url(RELEASED_REPO, name, subfolder=folder, revision=revision, endpoint=endpoint)
        try:
            found = get_hf_file_metadata(url, token=False, timeout=METADATA_TIMEOUT)
        except EntryNotFoundError:
            continue
        except Exception as error:  # huggingface_hub has changed its HTTP library twice, and each raises its own errors
            raise HubError(shorten_error(error)) from error
        digest = found.etag or ""
        if found.size is None or found.commit_hash is None or len(digest) not in (SHA256_DIGITS, GIT_SHA1_DIGITS):
            raise HubError(f"{url} comes without a size, a commit or a hash to check it by")
        commit = found.commit_hash
        url = hf_hub_url(RELEASED_REPO, name, subfolder=folder, revision=commit, endpoint=endpoint)
        return RemoteFile(name=name, url=url, size=found.size, digest=digest, commit=commit)
    raise HubError(f"{RELEASED_REPO} has no {' or '.join(names)} in {folder}")


def download(remote: RemoteFile, folder: pathlib.Path, on_progress: ByteProgress | None = None) -> pathlib.Path:
    """Download a file into a folder, atomically: complete and with the right hash, or not at all.

    Raises HubError for a transfer that fails, and AdvUnlearnError for a wrong hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, suffix=PARTIAL, ignore_cleanup_errors=True) as staging:
        received = pathlib.Path(staging, remote.name)
        _download_unchecked(remote, received, on_progress or (lambda done, total: None))
        if compute_digest(received, len(remote.digest)) != remote.digest:
            raise AdvUnlearnError(
                f"the file that came from {remote.url} is damaged: its hash is not the hub's; it was removed"
            )
        if len(remote.digest) == SHA256_DIGITS:  # in the format of `sha256sum -c`
            text = f"# {remote.url} at commit {remote.commit}\n{remote.digest}  {remote.name}\n"
            write_atomic(folder / f"{remote.name}.sha256", text.encode())
        with replace_atomically(folder / remote.name) as partial:
            os.replace(received, partial)
    return folder / remote.name


def _download_unchecked(remote: RemoteFile, path: pathlib.Path, on_progress: ByteProgress) -> None:
    """Download a file without a look at its hash; resume a transfer that breaks off.

    `http_get` writes into the file it is given. `hf_hub_download` would not report bytes in versions before 1.1, and
    with Xet it reports them on a thread where raising does not cancel.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=False)  # the repository is public: nothing of the user's is sent
    with _PromisedFile(path, remote, on_progress) as file, _without_bars():
        for attempt in range(MAX_TRANSFERS):
            before = file.tell()
            try:
                http_get(remote.url, file, resume_size=before, headers=headers, expected_size=remote.size)
                return
            except Exception as error:  # see `find_remote_file`
                if isinstance(error, HubError) or error is file.callers_error:
                    raise
                if file.tell() == before or attempt == MAX_TRANSFERS - 1:
                    raise HubError(shorten_error(error)) from error


class _PromisedFile(io.BufferedWriter):
    """A file that takes no more bytes than the hub promised, and reports how many it has."""

    def __init__(self, path: pathlib.Path, remote: RemoteFile, on_progress: ByteProgress) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.remote = remote
        self.on_progress = on_progress
        self.callers_error: Exception | None = None

    def write(self, chunk: Any) -> int:
        """Write bytes. Raises HubError if they exceed the promised size."""
        received = self.tell() + len(chunk)
        if received > self.remote.size:
            raise HubError(f"{self.remote.url} sends more than the {self.remote.size} bytes that it promised")
        count = super().write(chunk)
        try:
            self.on_progress(received, self.remote.size)
        except Exception as error:
            self.callers_error = error
            raise
        return count


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Let huggingface_hub draw no progress bar: the caller has its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
