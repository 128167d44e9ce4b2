"""Fetching the released encoders, from a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from local_hub import COMMIT, Hub, running

from advunlearn.errors import AdvUnlearnError
from advunlearn.formats import released

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = "church_unlearned"
WEIGHTS = os.urandom(3_000_000)
FILES = {f"{FOLDER}/config.json": b'{"model_type": "clip_text_model"}\n', f"{FOLDER}/model.safetensors": WEIGHTS}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # Where the hub's library was told to stay offline, by the environment or in another test, it would not ask ours.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running(dict(FILES)) as hub:
        yield hub


class Cancelled(Exception):
    """What a host raises in its progress bar."""


def test_an_encoder_comes_whole_with_progress_and_its_hash(hub: Hub, tmp_path: pathlib.Path) -> None:
    seen: list[tuple[int, int]] = []
    path = released.fetch_encoder("church", tmp_path, lambda done, total: seen.append((done, total)), hub.address)
    assert path == tmp_path / FOLDER / "model.safetensors" and path.read_bytes() == WEIGHTS
    assert (path.parent / "config.json").read_bytes() == FILES[f"{FOLDER}/config.json"]
    assert len(seen) > 5 and seen == sorted(seen) and seen[-1] == (3_000_000, 3_000_000)
    note, line = (path.parent / "model.safetensors.sha256").read_text().splitlines()
    assert line == f"{hashlib.sha256(WEIGHTS).hexdigest()}  model.safetensors" and COMMIT in note
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.json", "model.safetensors", path.name + ".sha256"]
    asked = len(hub.heard)
    assert released.fetch_encoder("church", tmp_path, None, "http://127.0.0.1:9") == path
    assert len(hub.heard) == asked  # what is there is not fetched again


def test_a_repository_with_pickles_only(hub: Hub, tmp_path: pathlib.Path) -> None:
    hub.files[f"{FOLDER}/pytorch_model.bin"] = hub.files.pop(f"{FOLDER}/model.safetensors")
    path = released.fetch_encoder("church", tmp_path, None, hub.address)
    assert path.name == "pytorch_model.bin" and path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_refused_and_removed(hub: Hub, tmp_path: pathlib.Path, file: str) -> None:
    if file == "config.json":
        whole = hub.files[f"{FOLDER}/{file}"]
        good, bad = released.look_up(FOLDER, (file,), hub.address), whole[::-1]
        hub.files[f"{FOLDER}/{file}"] = bad
        with pytest.raises(AdvUnlearnError, match="is damaged: its hash is not the hub's; it was removed"):
            released.download(good, tmp_path / FOLDER / file, lambda *_: None)
    else:
        hub.damage = b"damaged"
        with pytest.raises(AdvUnlearnError, match="is damaged: its hash is not the hub's; it was removed"):
            released.fetch_encoder("church", tmp_path, None, hub.address)
    assert not [p for p in (tmp_path / FOLDER).iterdir() if file in p.name]


def test_a_transfer_that_breaks_off_goes_on(hub: Hub, tmp_path: pathlib.Path) -> None:
    hub.cut_after = 1_000_000
    assert released.fetch_encoder("church", tmp_path, None, hub.address).read_bytes() == WEIGHTS
    ranges = [r for _, path, r in hub.heard if path.startswith("/bytes/")]
    assert ranges[0] is None and len(ranges) == 4 and all(str(r).startswith("bytes=") for r in ranges[1:])


@pytest.mark.parametrize("ranges", [True, False])
def test_cancel_comes_out_and_what_came_is_kept(hub: Hub, tmp_path: pathlib.Path, ranges: bool) -> None:
    def cancel(done: int, total: int) -> None:
        if done > total / 2:
            raise Cancelled

    hub.ranges = ranges
    with pytest.raises(Cancelled):
        released.fetch_encoder("church", tmp_path, cancel, hub.address)
    (partial,) = (tmp_path / FOLDER).glob("*.partial")
    assert released.find_fetched("church", tmp_path) is None
    first: list[int] = []
    kept = partial.stat().st_size
    path = released.fetch_encoder("church", tmp_path, lambda done, _: first.append(done), hub.address)
    assert path.read_bytes() == WEIGHTS and kept > 1_500_000 and first[0] > kept
    assert not partial.exists()


def test_a_transfer_never_goes_on_with_another_version(hub: Hub, tmp_path: pathlib.Path) -> None:
    def cancel(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        released.fetch_encoder("church", tmp_path, cancel, hub.address)
    newer = os.urandom(2_000_000)
    hub.files[f"{FOLDER}/model.safetensors"] = newer
    assert released.fetch_encoder("church", tmp_path, None, hub.address).read_bytes() == newer


def refused(error: pytest.ExceptionInfo[AdvUnlearnError], folder: pathlib.Path) -> bool:
    """Return whether a refusal is one line that says what to do by hand."""
    text = str(error.value)
    return "\n" not in text and str(folder) in text and f"/OPTML-Group/AdvUnlearn/tree/main/{FOLDER}" in text


def test_without_a_network_one_sentence_says_what_to_do(hub: Hub, tmp_path: pathlib.Path) -> None:
    with pytest.raises(AdvUnlearnError, match="could not be fetched") as error:
        released.fetch_encoder("church", tmp_path, None, "http://127.0.0.1:9")
    assert refused(error, tmp_path / FOLDER) and not list(tmp_path.iterdir())
    del hub.files[f"{FOLDER}/model.safetensors"]
    with pytest.raises(AdvUnlearnError, match="has no model.safetensors or pytorch_model.bin in church") as error:
        released.fetch_encoder("church", tmp_path, None, hub.address)
    assert refused(error, tmp_path / FOLDER)
    with pytest.raises(AdvUnlearnError, match="no released encoder is called 'cats'; there are nudity, vangogh"):
        released.fetch_encoder("cats", tmp_path)


def test_a_hub_that_goes_away_keeps_what_came(hub: Hub, tmp_path: pathlib.Path) -> None:
    def gone(done: int, total: int) -> None:
        hub.cut_after, hub.files[f"{FOLDER}/model.safetensors"] = 1, b""

    with pytest.raises(AdvUnlearnError, match="could not be fetched") as error:
        hub.cut_after = 1_000_000
        released.fetch_encoder("church", tmp_path, gone, hub.address)
    assert refused(error, tmp_path / FOLDER)
    (partial,) = (tmp_path / FOLDER).glob("*.partial")
    assert partial.stat().st_size == 3 * released.CHUNK


def command(tmp_path: pathlib.Path, endpoint: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `advunlearn fetch church` in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": endpoint, **more}
    argv = [sys.executable, "-m", "advunlearn", "fetch", "church", "--to", str(tmp_path), "--json"]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_the_command_fetches_and_says_why_it_cannot(hub: Hub, tmp_path: pathlib.Path) -> None:
    offline = command(tmp_path, hub.address, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and "offline mode is enabled" in offline.stderr and offline.stderr.count("\n") == 1
    done = command(tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    assert pathlib.Path(json.loads(done.stdout)["file"]).read_bytes() == WEIGHTS
    down = command(tmp_path / "other", "http://127.0.0.1:9")
    assert down.returncode == 2 and "put config.json and" in down.stderr and "Traceback" not in down.stderr
