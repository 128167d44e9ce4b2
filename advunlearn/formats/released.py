"""The six encoders that the method's authors released, fetched from the Hugging Face hub when somebody asks for one.

Each is a CLIPTextModel folder in the repository OPTML-Group/AdvUnlearn. No hash of theirs is written here: the hub says
with every file what it hashes to (sha256 for a large file, git's own hash for a small one), what came is checked
against that before it gets its name, and `<file>.sha256` is written beside the weights. That finds a broken transfer,
not a hub that lies; the weights are read as weights alone in any case.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import textwrap
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import AdvUnlearnError
from ..files import PARTIAL, SHA256, WEIGHTS, compute_digest, write_atomic

RELEASED_REPO = "OPTML-Group/AdvUnlearn"
RELEASED_ENCODERS = ("nudity", "vangogh", "church", "garbage_truck", "parachute", "tench")
CHUNK = 1 << 18  # bytes between two looks at progress and cancel
TIMEOUT = 20.0  # seconds without a byte
GIT = 40  # hex digits of the hub's other kind of hash

OnProgress = Callable[[int, int], object]


class Unreachable(Exception):
    """The hub could not be asked, or stopped answering."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file of the hub as it says it is: where, how many bytes, its hash and the commit it is from."""

    url: str
    size: int
    digest: str
    commit: str


def subfolder(name: str) -> str:
    """Return an encoder's folder, in the repository as on the disk. Raises AdvUnlearnError for an unknown name."""
    if name not in RELEASED_ENCODERS:
        raise AdvUnlearnError(f"no released encoder is called {name!r}; there are {', '.join(RELEASED_ENCODERS)}")
    return f"{name}_unlearned"


def find_fetched(name: str, to: str | pathlib.Path) -> pathlib.Path | None:
    """Return the weights of a released encoder that is already in the folder `to`, or None."""
    places = [pathlib.Path(to) / subfolder(name) / file for file in WEIGHTS]
    return next((place for place in places if place.is_file()), None)


def fetch_encoder(
    name: str, to: str | pathlib.Path, on_progress: OnProgress | None = None, endpoint: str | None = None
) -> pathlib.Path:
    """Return the weights file of a released encoder, fetched into a folder of `to` unless it is there already.

    `on_progress(done, total)` gets bytes; what it raises ends the transfer and comes out. What had come by then is
    kept, and the next call goes on from there. `endpoint` is the hub's address ($HF_ENDPOINT by default).
    Raises AdvUnlearnError for an unknown name, without a network, and for a file that is not what the hub says it is.
    """
    if there := find_fetched(name, to):
        return there
    folder = pathlib.Path(to) / subfolder(name)
    try:
        config, weights = look_up(folder.name, ("config.json",), endpoint), look_up(folder.name, WEIGHTS, endpoint)
        # The weights come last: where they are, the folder is whole.
        download(config, folder / "config.json", lambda done, total: None)
        return download(weights, folder / pathlib.PurePosixPath(weights.url).name, on_progress or (lambda *_: None))
    except Unreachable as error:
        raise AdvUnlearnError(
            f"the released encoder {name!r} could not be fetched ({error}); try again, which goes on from where it "
            f"stopped, or put config.json and {' or '.join(WEIGHTS)} from "
            f"https://huggingface.co/{RELEASED_REPO}/tree/main/{folder.name} into {folder} yourself"
        ) from error


def look_up(folder: str, files: tuple[str, ...], endpoint: str | None = None) -> Remote:
    """Ask the hub about the first of some files that a folder has. Raises Unreachable, also when it has none."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import EntryNotFoundError

    for file in files:
        url = hf_hub_url(RELEASED_REPO, file, subfolder=folder, endpoint=endpoint)
        try:
            found = get_hf_file_metadata(url, token=False, timeout=TIMEOUT)
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's library has had three HTTP libraries under it, each with its own errors
            raise Unreachable(reason(error)) from error
        if found.size is None or len(found.etag or "") not in (SHA256, GIT):
            raise Unreachable(f"{url} comes without a size or a hash to check it by")
        return Remote(url=url, size=found.size, digest=str(found.etag), commit=found.commit_hash or "unknown")
    raise Unreachable(f"{RELEASED_REPO} has no {' or '.join(files)} in {folder}")


def reason(error: Exception) -> str:
    """Return an error's first line, kept short."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0] if lines else type(error).__name__, 200)


def download(remote: Remote, path: pathlib.Path, on_progress: OnProgress) -> pathlib.Path:
    """Bring a file to `path`, whole and with the right hash or not at all; a transfer that broke off goes on.

    Raises Unreachable once no byte comes any more, and AdvUnlearnError for a wrong hash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named by its hash, so that a transfer never goes on with another version of the file.
    partial = path.with_name(f"{path.name}.{remote.digest[:12]}{PARTIAL}")
    with partial.open("ab") as file:
        while (start := file.tell()) < remote.size:
            broke = Unreachable(f"{remote.url} sends nothing after {start} of {remote.size} bytes")
            try:
                with contextlib.closing(stream(remote.url, start)) as chunks:
                    for chunk in chunks:
                        file.write(chunk)
                        on_progress(file.tell(), remote.size)
            except Unreachable as error:
                broke = error
            if file.tell() == start:
                raise broke
        file.flush()
        os.fsync(file.fileno())
    if compute_digest(partial, len(remote.digest)) != remote.digest:
        partial.unlink()
        raise AdvUnlearnError(f"what came from {remote.url} is damaged: its hash is not the hub's; it was removed")
    if len(remote.digest) == SHA256:  # as `sha256sum -c` reads it
        text = f"# {remote.url} at commit {remote.commit}\n{remote.digest}  {path.name}\n"
        write_atomic(path.with_name(path.name + ".sha256"), text.encode())
    os.replace(partial, path)
    return path


def stream(url: str, start: int) -> Generator[bytes, None, None]:
    """Yield a file's bytes from `start` on. Raises Unreachable for whatever the HTTP library raises."""
    try:
        with answer(url, {"Range": f"bytes={start}-"} if start else {}) as (status, chunks):
            skip = start if status == 200 else 0  # a server that knows no ranges sends all of it
            for chunk in chunks:
                if piece := chunk[skip:]:
                    yield piece
                skip = max(0, skip - len(chunk))
    except Exception as error:
        raise Unreachable(reason(error)) from error


@contextlib.contextmanager
def answer(url: str, headers: dict[str, str]) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Send a GET through the hub's session, which knows the user's proxies; give the status and the chunks."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    session: Any = get_session()
    # Nothing of the user's is sent: the repository is public.
    headers = {**build_hf_headers(token=False), "Accept-Encoding": "identity", **headers}
    if callable(getattr(session, "stream", None)):  # httpx, from huggingface_hub 1 on
        with session.stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
            hf_raise_for_status(response)
            yield response.status_code, response.iter_bytes(CHUNK)
    else:  # requests
        with session.get(url, headers=headers, timeout=TIMEOUT, stream=True) as response:
            hf_raise_for_status(response)
            yield response.status_code, response.iter_content(CHUNK)
