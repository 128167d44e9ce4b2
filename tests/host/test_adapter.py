"""The adapter against the library: the same weights give the same predictions and the same gradients."""

from __future__ import annotations

import json
import pathlib
import subprocess

import pytest

from .server import PACK, Server, host_python

pytestmark = pytest.mark.host


def test_predictions_and_gradients_are_the_librarys_in_eps_and_v(server: Server, base: pathlib.Path) -> None:
    script = pathlib.Path(__file__).with_name("inside.py")
    checkpoint = base / "models" / "checkpoints" / "miniature.safetensors"
    command = [host_python(server.host), str(script), str(server.host), str(PACK), str(checkpoint)]
    done = subprocess.run(command, cwd=server.host, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # The checkpoint is in fp16 and the host computes in fp32 here: what differs is rounding of the widened weights.
    assert found["encoder"] < 5e-3 and found["stock_encode"] < 1e-4, found
    assert found["drawn"]["apart"] < 0.02 < found["drawn"]["contrast"], found  # by the host's own sampler and VAE
    for kind in ("eps", "v"):
        assert found[kind]["prediction"] < 0.01 * found[kind]["scale"], found
        assert found[kind]["gradient"] < 0.01, found
    # Gradient checkpointing changes nothing; another dtype changes the run's own arithmetic and not the user's.
    assert found["checkpointed"] and found["blocks"] > 10 and not found["own_forward"], found
    assert found["bfloat16"] == "torch.bfloat16" and found["rounded"] and found["cosine"] > 0.99, found
    assert found["as_before"], found
    # LoRAs on the MODEL are part of it, and cancel is heard in every prediction.
    assert found["patch_seen"] and found["patch_exact"] and found["cancelled"] == "raised", found
    # A patched CLIP is read with its patches, loaded or not.
    assert max(found["patched"].values()) < 1e-6, found
    assert found["heavy"] == []  # nothing heavy is imported before a node runs
    assert found["untouched"], "the user's MODEL or CLIP changed"
