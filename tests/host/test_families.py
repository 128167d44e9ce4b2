"""A robust CLIP-L in the CLIP of SD 1.x, SDXL, SD3, Flux and HunyuanVideo, made by the host's own classes."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from typing import Any

import pytest

from .server import PACK, find_host, host_python

pytestmark = pytest.mark.host
# What the host calls the encoders of each family, and which outputs CLIP-L has a part in: (conditioning, pooled).
FAMILIES = {
    "sd1": (["clip_l"], [True, True]),
    "sdxl": (["clip_l", "clip_g"], [True, False]),
    "sd3": (["clip_l", "clip_g", "t5xxl"], [True, True]),
    "flux": (["clip_l", "t5xxl"], [False, True]),
    "hunyuan_video": (["clip_l", "llama"], [False, True]),
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    host = find_host()
    if host is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH, or put the pack into custom_nodes, or use ~/comfy/ComfyUI")
    script = pathlib.Path(__file__).with_name("families.py")
    done = subprocess.run(
        [host_python(host), str(script), str(host), str(PACK), "-"],
        cwd=host,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_only_clip_l_is_replaced_and_exactly(found: dict[str, Any], family: str) -> None:
    measured, (parts, changes) = found[family], FAMILIES[family]
    assert measured["parts"] == parts
    assert measured["zero_is_base"] and measured["one_is_robust"] and measured["half_is_neither"], measured
    assert measured["changed"] == 196 and measured["only_clip_l"], measured
    assert measured["zero_encodes_as_base"] and measured["encodes_as_made_from_robust"], measured
    assert measured["encoding_changed"] == changes, measured
    assert measured["untouched"], "the user's CLIP changed"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_stacked_after_is_exact(found: dict[str, Any], family: str) -> None:
    assert found[family]["lora"], found[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_clip_l_has_kohyas_names(found: dict[str, Any], family: str) -> None:
    start = "lora_te_" if family == "sd1" else "lora_te1_"
    layer = "text_model_encoder_layers_0_mlp_fc1"
    read_as = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert found[family]["lora_name"] == [start + layer, read_as]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            "clip_g",
            "clip_g.safetensors is SDXL's CLIP-G (OpenCLIP ViT-bigG), 1280 wide, 32 layers; this model needs "
            "CLIP-L, 768 wide",
        ),
        ("sd2", "sd2.safetensors is Stable Diffusion 2's text encoder (OpenCLIP ViT-H), 1024 wide, 24 layers; this"),
        ("missing", "lacks 2 of CLIP-L's 196 tensors, first 'text_model.encoder.layers.11.mlp.fc2.bias'"),
        ("shape", "'text_model.embeddings.position_embedding.weight' in shape (248, 768) and not (77, 768)"),
    ],
)
def test_other_encoders_are_refused_by_name(found: dict[str, Any], other: str, says: str) -> None:
    assert says in found["refusals"][other] and "\n" not in found["refusals"][other]
