"""Verify Robust CLIP in the real ComfyUI."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest
from tiny_models import colour_classifier

from .conftest import CHECKPOINT
from .server import HostError, Server, node

pytestmark = pytest.mark.host


def verify(**changes: Any) -> dict[str, Any]:
    """Return a graph that verifies the original CLIP, on which every plain prompt succeeds and nothing is attacked."""
    values = {
        "concept": "church",
        "kind": "object",
        "budget": "quick",
        "max_asr": 0.2,
        "min_retained": 0.9,
        "retained_prompts": "a dog | dog",
        "resolution": 64,
    }
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "judge": node("AdvUnlearnLoadJudge", judge="miniature"),
        "verify": node(
            "AdvUnlearnVerify",
            model=("ckpt", 0),
            original_clip=("ckpt", 1),
            clip=("ckpt", 1),
            vae=("ckpt", 2),
            judge=("judge", 0),
            **(values | changes),
        ),
        "passed": node("PreviewAny", source=("verify", 0)),
        "report": node("PreviewAny", source=("verify", 1)),
        "result": node("PreviewAny", source=("verify", 2)),
    }


def test_an_encoder_that_generates_the_concept_fails_with_its_counts_and_hashes(server: Server) -> None:
    outputs = server.run(verify())
    assert outputs["passed"]["text"] == ["False"]
    assert outputs["report"]["text"][0].startswith("church: FAILED\n")
    result = json.loads(outputs["result"]["text"][0])
    checks = {check["what"]: check for check in result["checks"]}
    assert checks["clean"]["success"] >= 18 and checks["clean"]["total"] == 20 and not checks["clean"]["passed"]
    assert checks["retained"]["total"] == 1 and checks["retained"]["at_least"] == 0.9
    assert result["settings"]["config"]["attack_steps"] == 40
    assert result["sha256"]["encoder"] == result["sha256"]["original_encoder"]
    basis = {"encoder", "original_encoder", "denoiser", "vae", "judge", "settings", "prompts", "tokens", "limits"}
    assert result["sha256"].keys() == basis and all(result["sha256"].values())


def test_retained_prompts_without_a_label_are_refused_in_one_sentence(server: Server) -> None:
    unlabelled = verify(retained_prompts="a dog")
    with pytest.raises(HostError, match="there are no retained prompts with a label"):
        server.run(unlabelled)


def test_the_full_budget_takes_synonyms_of_a_concept_of_which_none_are_known(
    server: Server, base: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    folder = base / "models" / "classifiers" / "invented"
    request.addfinalizer(lambda: shutil.rmtree(folder))
    colour_classifier(folder, ["blorb", "green", "blue"])
    graph = verify(concept="blorb", budget="full", min_retained=0.0, retained_prompts="")
    graph["judge"] = node("AdvUnlearnLoadClassifierJudge", folder="(the path below)", path=str(folder), top_k=1)
    with pytest.raises(HostError, match="no synonym of 'blorb' is known; give some as synonyms, one per line"):
        server.run(graph)
    graph["verify"]["inputs"]["synonyms"] = "globe"
    start = server.log.stat().st_size
    prompt_id = server.queue(graph)
    server.wait_for_log("sampling without an attack", start)
    server.request("interrupt", {})
    with pytest.raises(HostError, match="execution_interrupted"):  # at the first image; synonyms are checked before
        server.wait(prompt_id)
