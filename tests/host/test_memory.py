"""The training node checks the memory before it trains."""

from __future__ import annotations

import pathlib

import pytest

from .graphs import train_graph
from .server import HostError, Server, run_inside

pytestmark = pytest.mark.host


def test_a_run_that_is_too_large_is_refused_before_it_begins(server: Server, base: pathlib.Path) -> None:
    # A bank of 51 GB; a smaller micro-batch cannot help.
    graph = train_graph("huge", bank={"trajectories": 100_000, "sampling_steps": 1000})
    with pytest.raises(
        HostError, match=r"training would need \d+\.\d GB in addition .*are free on cpu.*no settings would fit"
    ):
        server.run(graph)
    assert not any(m["type"] == "progress" and m["data"].get("node") == "train" for m in server.heard)
    assert not list((base / "output").glob("**/huge*"))


def test_the_estimate_equals_what_a_run_takes_and_a_missing_estimate_does_not_stop_a_run(
    host: pathlib.Path, checkpoint: pathlib.Path
) -> None:
    measured = run_inside(host, "inside_memory.py", str(checkpoint))
    assert measured["predicted"] == pytest.approx(measured["counted"], rel=0.05), measured
    assert "GB (estimated)" in measured["line"]
    assert measured["broken"] == "memory: not estimated, TypeError: no fake kernel"
    assert measured["cancelled"] == "raised"
