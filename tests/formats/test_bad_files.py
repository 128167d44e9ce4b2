"""Damaged, hostile and mistaken files: none is loaded, runs code, raises another library's exception, or costs much."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import bad_files
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 5.0  # for a call
MEGABYTES = 300.0


def try_files(start: int, stop: int, step: int) -> list[dict[str, Any]]:
    """Try the readers on files in a fresh process, whose peak memory is small; return what happened."""
    command = [sys.executable, bad_files.__file__, str(start), str(stop), str(step)]
    paths = os.pathsep.join([str(ROOT), str(pathlib.Path(bad_files.__file__).parent)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def require_refused(rows: list[dict[str, Any]]) -> None:
    good, *bad = rows
    # An encoder is no model and no CLIP-G, and does not differ from itself.
    refused = dict.fromkeys(("model", "clip_g", "base"), "refused")
    assert good["outcome"] == {"load": "loaded", "info": "loaded", "convert": "loaded"} | refused
    for row in bad:
        allowed = {"load": ["refused"], "info": ["refused", "loaded"]}  # info describes files that fit no model
        assert all(how in allowed.get(call, ["refused"]) for call, how in row["outcome"].items()), row
        assert not row["executed"], row
        assert row["megabytes"] < MEGABYTES and row["seconds"] < SECONDS * len(row["outcome"]), row


def test_a_sample_of_bad_files_is_refused() -> None:
    rows = try_files(0, bad_files.COUNT, 25)
    assert {row["kind"] for row in rows[1:]} == {kind.__name__ for kind in bad_files.KINDS}
    require_refused(rows)


@pytest.mark.slow
def test_all_bad_files_are_refused() -> None:
    rows = try_files(0, bad_files.COUNT, 1)
    assert len(rows) == 1 + bad_files.COUNT
    require_refused(rows)


def test_planted_code_would_make_its_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    import pickle

    for how in range(3):
        monkeypatch.setenv(bad_files.MARKER, str(tmp_path / f"marker-{how}"))
        pickle.loads(pickle.dumps(bad_files.Planted(how)))
        assert (tmp_path / f"marker-{how}").exists()
