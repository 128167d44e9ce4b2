"""Output on a console whose code page lacks the characters of a name or a prompt."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import shutil

import pytest

import advunlearn
from advunlearn.cli.main import main

MINIATURE = pathlib.Path(advunlearn.__file__).parent / "miniature"
CAT = "\u732b"  # not in code page 1252; nor is the lone surrogate of an undecodable file name in UTF-8
ENCODINGS = pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])


def run_on_console(encoding: str, *command: str) -> tuple[int, bytes, bytes]:
    """Return a command's exit code, and what it writes to stdout and stderr in an encoding."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    return code, *(stream.buffer.getvalue() for stream in (out, err))  # type: ignore[attr-defined]


@ENCODINGS
@pytest.mark.parametrize("name", [f"{CAT}.safetensors", "caf\u00e9.safetensors"])
def test_a_result_is_printed_whatever_the_console_can_show(encoding: str, name: str, tmp_path: pathlib.Path) -> None:
    shutil.copy(MINIATURE / "model" / "text_encoder" / "model.safetensors", tmp_path / name)
    code, out, err = run_on_console(encoding, "info", str(tmp_path / name))
    assert code == 0 and b"safetensors" in out and not err
    code, out, err = run_on_console(encoding, "info", "--json", str(tmp_path / name))
    assert code == 0 and json.loads(out) and not err


@ENCODINGS
@pytest.mark.parametrize("name", [CAT, "\udce9"])
def test_an_error_is_one_line_whatever_the_console_can_show(encoding: str, name: str) -> None:
    code, out, err = run_on_console(encoding, "info", f"nowhere/{name}")
    assert code == 2 and not out and err.count(b"\n") == 1


@ENCODINGS
def test_the_prompts_that_were_read_are_described_on_every_console(encoding: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.txt").write_text(f"{CAT}\na dog\n", encoding="utf-8")
    code, _, err = run_on_console(encoding, "attack", "--prompts", str(tmp_path / "mine.txt"), "--model", "nowhere")
    shown = CAT.encode("utf-8") if encoding == "utf-8" else b"\\u732b"
    assert code == 2 and b"mine.txt: 2 prompts: the first '" + shown + b"', the last 'a dog'\n" in err
