"""The training node looks at the memory before it trains."""

from __future__ import annotations

import json
import pathlib
import subprocess
import time

import pytest

from .conftest import CHECKPOINT
from .server import PACK, HostError, Server, host_python
from .test_nodes import train_graph

pytestmark = pytest.mark.host


def test_a_run_that_is_too_large_is_refused_before_it_begins(server: Server, base: pathlib.Path) -> None:
    graph = train_graph("huge", batch=1024, retain_batch=1024, resolution=2048, mode="advunlearn", iterations=50)
    start = time.monotonic()
    with pytest.raises(
        HostError, match=r"training would need \d+\.\d GB in addition .*are free on cpu.*would fit: reso"
    ):
        server.run(graph)
    assert time.monotonic() - start < 180
    assert not any(m["type"] == "progress" and m["data"].get("node") == "train" for m in server.heard)
    assert not list((base / "output").glob("**/huge*"))


def test_the_report_of_a_run_names_the_estimate(server: Server) -> None:
    outputs = server.run(train_graph("small", iterations=2, warmup=0))
    assert "GB at most" in outputs["text"]["text"][0]


def test_the_estimate_is_what_a_run_takes_and_no_estimate_is_no_reason_to_stop(
    server: Server, base: pathlib.Path
) -> None:
    script = pathlib.Path(__file__).with_name("inside_memory.py")
    arguments = [str(server.host), str(PACK), str(base / "models" / "checkpoints" / CHECKPOINT)]
    command = [host_python(server.host), str(script), *arguments]
    done = subprocess.run(command, cwd=server.host, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["predicted"] == pytest.approx(found["counted"], rel=0.05), found
    assert "GB at most" in found["line"]
    assert found["broken"] == "memory: not estimated, TypeError: no fake kernel"
    assert found["cancelled"] == "raised"
