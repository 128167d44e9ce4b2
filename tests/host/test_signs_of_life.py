"""What a person hears of a training whose every prediction takes a second."""

from __future__ import annotations

import pathlib
import shutil
import time
from collections.abc import Iterator

import pytest

from .graphs import CHECKPOINT, Graph, train_graph
from .server import Server, node

pytestmark = [pytest.mark.host, pytest.mark.slow]
LONGEST = 10.0  # seconds without a text
STEPS = 12  # of one batch of trajectories, which reports when it ends: two predictions each


@pytest.fixture(scope="module")
def slow(host: pathlib.Path, checkpoint: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the node SlowModel."""
    server = Server(host, tmp_path_factory.mktemp("slow"))
    shutil.copy(pathlib.Path(__file__).with_name("slow_pack.py"), server.base / "custom_nodes")
    (server.base / "models" / "checkpoints" / CHECKPOINT).hardlink_to(checkpoint)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def slow_training() -> Graph:
    """Return a training in which each batch of trajectories takes more seconds than may pass without a text."""
    graph = train_graph("slow", bank={"sampling_steps": STEPS})
    graph["train"]["inputs"]["model"] = ["slow", 0]
    return graph | {"slow": node("SlowModel", model=("ckpt", 0))}


def test_a_training_is_never_silent_for_ten_seconds(slow: Server) -> None:
    begin = time.monotonic()
    slow.run(slow_training())
    said = [(when, text.splitlines()[0]) for when, sender, text in slow.texts if sender == "train"]
    times = [begin, *(when for when, _ in said), time.monotonic()]
    assert max(after - before for before, after in zip(times, times[1:], strict=False)) < LONGEST, said
    phases = [text.split(":")[0].split(" (")[0] for _, text in said]
    assert list(dict.fromkeys(phases)) == [
        "loading the model",
        "estimating the memory",
        "filling the bank",
        "training",
        "done",
    ]
    # A batch is at work for longer than that, and its first text says so from its beginning.
    filling = [(when, text) for when, text in said if text.startswith("filling the bank")]
    assert filling[0][1] == "filling the bank: 0 of 2 trajectories"
    assert filling[-1][0] - filling[0][0] > LONGEST
