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
    # The library would not ask our hub if the environment or another test had put it into offline mode.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # It receives 10 MB at a time, more than the file has.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    with running(dict(FILES)) as hub:
        yield hub


class Cancelled(Exception):
    """Raised by a host in its progress bar."""


def test_an_encoder_is_downloaded_with_progress_and_its_hash(hub: Hub, tmp_path: pathlib.Path) -> None:
    seen: list[tuple[int, int]] = []
    path = released.fetch_encoder("church", tmp_path, lambda done, total: seen.append((done, total)), hub.address)
    assert path == tmp_path / FOLDER / "model.safetensors" and path.read_bytes() == WEIGHTS
    assert (path.parent / "config.json").read_bytes() == FILES[f"{FOLDER}/config.json"]
    assert len(seen) > 5 and seen == sorted(seen) and seen[-1] == (3_000_000, 3_000_000)
    note, line = (path.parent / "model.safetensors.sha256").read_text().splitlines()
    assert line == f"{hashlib.sha256(WEIGHTS).hexdigest()}  model.safetensors" and COMMIT in note
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.json", "model.safetensors", path.name + ".sha256"]
    assert [p.name for p in tmp_path.iterdir()] == [FOLDER]
    assert all(f"/resolve/{COMMIT}/" in p or p.startswith("/bytes/") for _, p, _ in hub.requests)  # at one commit
    requests = len(hub.requests)
    assert released.fetch_encoder("church", tmp_path, None, "http://127.0.0.1:9") == path
    assert len(hub.requests) == requests  # an encoder that is there is not downloaded again


def test_a_repository_with_pickles_only(hub: Hub, tmp_path: pathlib.Path) -> None:
    hub.files[f"{FOLDER}/pytorch_model.bin"] = hub.files.pop(f"{FOLDER}/model.safetensors")
    path = released.fetch_encoder("church", tmp_path, None, hub.address)
    assert path.name == "pytorch_model.bin" and path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_refused_and_removed(hub: Hub, tmp_path: pathlib.Path, file: str) -> None:
    says = "is damaged: its hash is not the hub's; it was removed"
    if file == "config.json":
        stated = released.find_remote_file(FOLDER, (file,), hub.address)
        hub.files[f"{FOLDER}/{file}"] = hub.files[f"{FOLDER}/{file}"][::-1]
        with pytest.raises(AdvUnlearnError, match=says):
            released.download(stated, tmp_path / FOLDER)
    else:
        hub.damage = b"damaged"
        with pytest.raises(AdvUnlearnError, match=says):
            released.fetch_encoder("church", tmp_path, None, hub.address)
    assert not [p for p in (tmp_path / FOLDER).iterdir() if p.name != "config.json" or file == "config.json"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_breaks_off_is_resumed(hub: Hub, tmp_path: pathlib.Path, ranges: bool) -> None:
    hub.cut_after = 1_000_000
    hub.cuts = 2
    hub.ranges = ranges
    assert released.fetch_encoder("church", tmp_path, None, hub.address).read_bytes() == WEIGHTS
    requested = [r for _, path, r in hub.requests if path.startswith("/bytes/")]
    assert requested[0] is None and len(requested) == 3 and all(str(r).startswith("bytes=") for r in requested[1:])


def test_an_exception_in_the_progress_callback_cancels_and_propagates(hub: Hub, tmp_path: pathlib.Path) -> None:
    seen: list[int] = []

    def cancel(done: int, total: int) -> None:
        seen.append(done)
        if done > total / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        released.fetch_encoder("church", tmp_path, cancel, hub.address)
    assert 1_500_000 < seen[-1] < 1_700_000
    assert [p.name for p in (tmp_path / FOLDER).iterdir()] == ["config.json"]
    assert released.find_fetched("church", tmp_path) is None
    assert released.fetch_encoder("church", tmp_path, None, hub.address).read_bytes() == WEIGHTS


def test_a_transfer_ends_at_the_size_that_was_promised(hub: Hub, tmp_path: pathlib.Path) -> None:
    hub.surplus = bytes(1_000_000)
    seen: list[int] = []
    with pytest.raises(AdvUnlearnError, match="sends more than the 3000000 bytes that it promised"):
        released.fetch_encoder("church", tmp_path, lambda done, _: seen.append(done), hub.address)
    assert seen[-1] <= 3_000_000 and [p.name for p in (tmp_path / FOLDER).iterdir()] == ["config.json"]


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


def test_a_hub_that_goes_away_leaves_nothing_behind(hub: Hub, tmp_path: pathlib.Path) -> None:
    def empty_the_hub(done: int, total: int) -> None:
        hub.files[f"{FOLDER}/model.safetensors"] = b""

    hub.cut_after = 1_000_000
    with pytest.raises(AdvUnlearnError, match="could not be fetched") as error:
        released.fetch_encoder("church", tmp_path, empty_the_hub, hub.address)
    assert refused(error, tmp_path / FOLDER)
    assert [p.name for p in (tmp_path / FOLDER).iterdir()] == ["config.json"]


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
