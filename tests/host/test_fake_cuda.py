"""The nodes on a GPU, without one: training, an attack and an evaluation on CUDA tensors that the CPU computes."""

from __future__ import annotations

import pathlib

import pytest

from .server import run_inside

pytestmark = pytest.mark.host
# The host's default on a GPU; the others ask a driver for its memory.
FLAGS = "--cpu --use-pytorch-cross-attention"


def test_the_nodes_do_on_the_gpu_what_they_do_on_the_cpu(
    host: pathlib.Path, checkpoint: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that a node leaves on the CPU, or a generator of another device, raises as it does with CUDA."""
    monkeypatch.setenv("ADVUNLEARN_HOST_FLAGS", FLAGS)
    measured = run_inside(host, "inside_fake_cuda.py", str(checkpoint))
    here, there = measured["cpu"], measured["cuda"]
    assert here.pop("devices") == {"model": "cpu", "clip": "cpu", "vae": "cpu"}
    assert there.pop("devices") == {"model": "cuda:0", "clip": "cuda:0", "vae": "cuda:0"}
    for losses in ("training_losses", "attack_losses"):
        assert there.pop(losses) == pytest.approx(here.pop(losses), rel=1e-3)
    for measured in (here, there):  # which words a search takes can hang on the last digit
        assert measured.pop("adversarial_prompt").endswith("a church")
    assert there == here and here["verdict"] and here["scores"]
