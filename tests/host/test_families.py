"""A robust CLIP-L in the CLIP of every family of models that has one, made by the host's own classes."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from .server import run_inside

pytestmark = pytest.mark.host
# The host's names of the encoders in each family, and whether CLIP-L affects (conditioning, pooled vector).
FAMILIES = {
    "sd1": (["clip_l"], [True, True]),
    "sdxl": (["clip_l", "clip_g"], [True, False]),
    "sd3": (["clip_l", "clip_g", "t5xxl"], [True, True]),
    "flux": (["clip_l", "t5xxl"], [False, True]),
    "hunyuan_video": (["clip_l", "llama"], [False, True]),
    "hidream": (["clip_l", "clip_g", "t5xxl", "llama"], [False, True]),
    "kandinsky5": (["qwen25_7b", "clip_l"], [False, True]),
}
NEW = ("kandinsky5",)  # not in every version of the host


@pytest.fixture(scope="module")
def everything(host: pathlib.Path) -> dict[str, Any]:
    return run_inside(host, "families.py", "-")


@pytest.fixture
def measured(everything: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.node.callspec.params.get("family") in set(NEW) - set(everything):
        pytest.skip("this host is older than the family")
    return everything


@pytest.mark.parametrize("family", FAMILIES)
def test_only_clip_l_is_replaced_and_exactly(measured: dict[str, Any], family: str) -> None:
    (parts, changes), result = FAMILIES[family], measured[family]
    assert result["parts"] == parts
    assert result["zero_is_base"] and result["one_is_robust"] and result["half_is_neither"], result
    assert result["changed"] == 196 and result["only_clip_l"], result
    assert result["zero_encodes_as_base"] and result["encodes_as_made_from_robust"], result
    assert result["encoding_changed"] == changes, result
    assert result["untouched"], "the user's CLIP changed"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_stacked_after_is_exact(measured: dict[str, Any], family: str) -> None:
    assert measured[family]["lora"], measured[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_clip_l_has_kohyas_names(measured: dict[str, Any], family: str) -> None:
    start = "lora_te_" if family == "sd1" else "lora_te1_"
    layer = "text_model_encoder_layers_0_mlp_fc1"
    read_as = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert measured[family]["lora_name"] == [start + layer, read_as]


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
def test_other_encoders_are_refused_by_name(measured: dict[str, Any], other: str, says: str) -> None:
    assert says in measured["refusals"][other] and "\n" not in measured["refusals"][other]
