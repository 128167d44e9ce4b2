"""The text encoders that Load Robust CLIP offers: the newest of each name first, then CLIP-L, then all others."""

from __future__ import annotations

import functools
import pathlib
import re

from ..advunlearn.errors import AdvUnlearnError
from . import folders

NEWEST = "newest of "
# As the nodes number their files; SDXL's end with the encoder's name.
NUMBERED = r"(.+)_(\d{5,})_(clip_[lg])?\.safetensors"
INTERMEDIATE = r".*(_at_\d+|_last_good)"  # not the result of a run
CLIP_L_WIDTH = 768
TOKEN_EMBEDDING = "token_embedding.weight"


def offer_encoders() -> list[str]:
    """Return the entries of the list."""
    files = sorted(folders.list_encoders(), key=lambda file: (_rank(file), file))
    return [*(f"{NEWEST}{name}" for name in sorted(_group_numbered(files))), *files]


def find_entry(entry: str) -> pathlib.Path:
    """Return the path of an entry's file. Raises AdvUnlearnError if there is none."""
    return folders.find_encoder(resolve_encoder(entry))


def resolve_encoder(entry: str) -> str:
    """Return the file that an entry stands for now. Raises AdvUnlearnError if nothing has been saved under a name."""
    if not entry.startswith(NEWEST):
        return entry
    name = entry.removeprefix(NEWEST)
    saved = _group_numbered(folders.list_encoders()).get(name)
    if not saved:
        raise AdvUnlearnError(
            f"no encoder has been saved as {name!r}: train one with Train AdvUnlearn Encoder and that save_name, or "
            "choose a file"
        )
    return saved[max(saved)]


def _group_numbered(files: list[str]) -> dict[str, dict[int, str]]:
    """Return the numbered files of each name; of SDXL's pair CLIP-L's, whose partner is loaded with it."""
    groups: dict[str, dict[int, str]] = {}
    for file in files:
        match = re.fullmatch(NUMBERED, file)
        if not match or re.fullmatch(INTERMEDIATE, match[1]):
            continue
        group, number = groups.setdefault(match[1], {}), int(match[2])
        if _rank(file) == 0:
            group[number] = file
        elif match[3] == "clip_g":  # alone, unless there is a CLIP-L
            group.setdefault(number, file)
    return {name: group for name, group in groups.items() if group}


def _rank(file: str) -> int:
    """Return 0 for a CLIP-L, 1 for a file that cannot be told without reading all of it, 2 for another model."""
    try:
        path = folders.find_encoder(file)
        stat = path.stat()
    except (AdvUnlearnError, OSError):
        return 1
    return _rank_path(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _rank_path(path: pathlib.Path, _modified: int, _size: int) -> int:
    """Return the rank of a file by the names and shapes in its header, which is all that is read."""
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() not in (".safetensors", ".sft"):
        return 1
    try:
        with safe_open(path, "pt") as file:
            tables = [name for name in file.keys() if name.endswith(TOKEN_EMBEDDING)]  # noqa: SIM118
            widths = {file.get_slice(name).get_shape()[-1] for name in tables}
    except (SafetensorError, OSError, IndexError):
        return 1
    return 0 if CLIP_L_WIDTH in widths else 2
