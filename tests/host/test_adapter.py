"""The adapter against the library: the same weights give the same predictions and the same gradients."""

from __future__ import annotations

import pathlib
import re

import pytest

from .server import run_inside

pytestmark = pytest.mark.host


def test_predictions_and_gradients_equal_the_librarys_for_noise_and_v_prediction(
    host: pathlib.Path, checkpoint: pathlib.Path
) -> None:
    measured = run_inside(host, "inside.py", str(checkpoint))
    # The checkpoint is in float16 and the host computes in float32 here: the widened weights are rounded differently.
    assert measured["encoder"] < 5e-3 and measured["stock_encode"] < 1e-4, measured
    # CLIP Set Last Layer: the host's conditioning from that layer; -1, and a layer that is not there, means all. The
    # last layers of the widened miniature are identities, the first is not.
    for layer, (apart, from_whole) in measured["clip_skip"].items():
        assert apart < 1e-4, measured
        assert from_whole > 1e-2 if layer in ("-12", "0") else from_whole < 1e-4, measured
    assert measured["stock_chunks"] == [2, 3, 1] and measured["stock_encode_long"] < 1e-4, measured
    assert measured["drawn"]["apart"] < 0.02 < measured["drawn"]["contrast"], measured  # the host's sampler and VAE
    for kind in ("eps", "v"):
        assert measured[kind]["prediction"] < 0.01 * measured[kind]["scale"], measured
        assert measured[kind]["gradient"] < 0.01, measured
    # Gradient checkpointing changes nothing; another dtype changes the run's arithmetic, but not the user's MODEL.
    assert measured["checkpointed"] and measured["blocks"] > 10 and not measured["own_forward"], measured
    assert measured["bfloat16"] == "torch.bfloat16" and measured["rounded"] and measured["cosine"] > 0.99, measured
    assert measured["as_before"], measured
    # LoRAs on the MODEL are part of it, and every prediction can be cancelled.
    assert measured["patch_seen"] and measured["patch_exact"] and measured["cancelled"] == "raised", measured
    # Embeddings that a CLIP does not read are an error, where their name would be encoded instead.
    assert measured["embeddings"]["refused"] == [False, True, True] and measured["embeddings"]["plain"], measured
    assert "has embeddings, but this CLIP refuses embeddings" in measured["embeddings"]["message"], measured
    assert measured["loads_again"] == [True, False], measured
    # A patched CLIP is read with its patches, loaded or not.
    assert max(measured["patched"].values()) < 1e-6, measured
    # A step that reports nothing is named again and again, with its seconds; nothing is said after the node's end.
    said = [re.sub(r"\d+", "N", text) for text in measured["silence"]]
    steps = [
        f"AdvUnlearn: {text}" for text in ("starting (this step: N s)", "estimating", "estimating (this step: N s)")
    ]
    assert list(dict.fromkeys(said)) == steps and said[-1] == steps[-1] and len(said) < 6, measured
    assert measured["heavy"] == []  # nothing heavy is imported before a node runs
    assert measured["untouched"], "the user's MODEL or CLIP changed"
