"""Tell what kind of file a path is by its first bytes: safetensors, a pickle, or something else that is named."""

from __future__ import annotations

import pathlib
import re

from ..errors import AdvUnlearnError

SAFETENSORS = "safetensors"
ZIP_PICKLE = "zip pickle"  # torch.save since PyTorch 1.6
OLD_PICKLE = "old pickle"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# Files that are often taken for weights, by their first bytes.
OTHER_FILES = {
    b"GGUF": "a GGUF file, whose weights are quantized; give the safetensors file that it was made from",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull`, or download it again",
    b"\x89HDF": "an HDF5 file, as TensorFlow and Keras write; give the PyTorch or safetensors weights",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x93NUMPY": "a NumPy array",
    b"MZ": "a Windows program; do not run it",
    b"\x7fELF": "a Linux program; do not run it",
}
_HTML = rb"(?i)\s*<(!doctype|html|\?xml|head|body)"
_JSON = rb"\s*[\[{]\s*[\"\]}\[{]"
HEADER_SIZE = 8  # bytes of a safetensors file that give the length of its header
MAX_HEADER = 16 << 20  # bytes; a checkpoint with 10,000 tensors has 1 MB


def detect_container(path: pathlib.Path) -> str:
    """Return `SAFETENSORS`, `ZIP_PICKLE` or `OLD_PICKLE` by the content of a file.

    Raises AdvUnlearnError that names any other file, one whose ending is that of the other kind, and a damaged one.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise AdvUnlearnError(f"{path} cannot be opened ({error.strerror or error})") from error
    named_pickle = path.suffix.lower() in PICKLE_SUFFIXES
    kind = SAFETENSORS if is_safetensors(start, path.stat().st_size) else _detect_pickle(start)
    if not kind:
        raise AdvUnlearnError(_describe_other(path, start, named_pickle))
    if (kind == SAFETENSORS) == named_pickle:
        actual, ending = ("a pickle", ".ckpt") if kind != SAFETENSORS else ("a safetensors file", ".safetensors")
        raise AdvUnlearnError(f"{path} is {actual} with the ending {path.suffix!r}; rename it to {path.stem}{ending}")
    return kind


def _detect_pickle(start: bytes) -> str:
    if start.startswith(b"PK\x03\x04"):
        return ZIP_PICKLE
    return OLD_PICKLE if re.match(rb"\x80[\x02-\x05]", start) else ""


def is_safetensors(start: bytes, size: int) -> bool:
    """Return whether a file of `size` bytes that begins with `start` has a header of safetensors."""
    length = int.from_bytes(start[:HEADER_SIZE], "little")
    return start[HEADER_SIZE : HEADER_SIZE + 1] == b"{" and length <= min(size - HEADER_SIZE, MAX_HEADER)


def _describe_other(path: pathlib.Path, start: bytes, named_pickle: bool) -> str:
    """Return the error message for a file that is neither a pickle nor safetensors."""
    if not start:
        return f"{path} is empty; download it again"
    if known := next((text for magic, text in OTHER_FILES.items() if start.startswith(magic)), ""):
        return f"{path} is {known}"
    if re.match(_HTML, start):
        return f"{path} is a web page, not the file that it links to; download it again"
    if named_pickle:
        return (
            f"{path} cannot be read as weights alone (it is damaged, or no pickle); no code in it was run. Give the "
            "file that was saved, or download it again"
        )
    length = int.from_bytes(start[:HEADER_SIZE], "little")
    if start[HEADER_SIZE : HEADER_SIZE + 1] == b"{":
        reason = f"its header of {length} bytes is longer than the file or {MAX_HEADER} bytes"
    else:
        reason = "it is JSON" if re.match(_JSON, start) else "it has no header"
    return (
        f"{path} is not a readable safetensors file ({reason}); give the file that training wrote, or download it again"
    )
