"""The host on its GPU, where there is one: a run through the adapter takes the memory that was estimated."""

from __future__ import annotations

import pathlib

import pytest
import torch

from .server import run_inside

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch finds none here"),
]


def test_a_run_on_the_gpu_takes_the_memory_that_was_estimated(
    host: pathlib.Path, checkpoint: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVUNLEARN_HOST_FLAGS", "")  # instead of --cpu
    measured = run_inside(host, "inside_memory.py", str(checkpoint))
    assert measured["device"].startswith("cuda"), measured
    assert measured["predicted"] == pytest.approx(measured["counted"], rel=0.15), measured
