"""SDXL in the host: the miniature SDXL's checkpoint, and the same weights in the library."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from advunlearn.miniature.sdxl import write_sdxl_checkpoint

from .server import run_inside

pytestmark = pytest.mark.host
slow = pytest.mark.slow  # the checkpoint has 2 GB
TAKEN = (
    "SDXL",
    "SDXL, v prediction",
    "SDXL, v prediction, zero terminal SNR",
    "SDXL, v prediction by the node",
    "SD 1.x",
    "SDXL with its CLIP",
)
REFUSED = {
    "SDXL's refiner": "of the class SDXLRefiner, its conditioning 1280 wide; only Stable Diffusion 1.x (768) and SDXL",
    "SDXL for inpainting": "an inpainting model; use the text-to-image model",
    "SDXL for image editing": "an image editing model; use the text-to-image model",
    "SD 1.x for image editing": "an image editing model; use the text-to-image model",
    "CosXL": "samples as ModelSamplingContinuousEDM and V_PREDICTION; only the discrete schedule",
    "Playground 2.5": "samples as ModelSamplingContinuousEDM and EDM; only the discrete schedule",
    "SDXL with LCM's sampling": "samples as ModelSamplingDiscreteDistilled and LCM; only the discrete schedule",
    "SDXL with flow matching": "samples as ModelSamplingDiscreteFlow and CONST; only the discrete schedule",
    "SDXL with EDM's sampling": "samples as ModelSamplingContinuousEDM and EPS; only the discrete schedule",
    "SDXL with SD3's CLIP": "this MODEL is SDXL's and this CLIP is of another family; connect both",
    "SD 1.x with SDXL's CLIP": "this MODEL is of another family and this CLIP is SDXL's; connect both",
}


@pytest.fixture(scope="module")
def answers(host: pathlib.Path) -> dict[str, str]:
    return run_inside(host, "inside_refusals.py", "-")


@pytest.mark.parametrize("kind", TAKEN)
def test_a_text_to_image_model_of_noise_or_v_prediction_is_taken(answers: dict[str, str], kind: str) -> None:
    assert answers[kind] == ""


@pytest.mark.parametrize("kind", REFUSED)
def test_other_models_are_refused_by_name(answers: dict[str, str], kind: str) -> None:
    assert REFUSED[kind] in answers[kind]


def test_every_answer_is_expected(answers: dict[str, str]) -> None:
    assert set(answers) == {*TAKEN, *REFUSED}


@pytest.fixture(scope="module")
def measured(host: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = write_sdxl_checkpoint(tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors")
    try:
        return run_inside(host, "inside_sdxl.py", str(file))
    finally:
        file.unlink()  # 2 GB


@slow
def test_the_host_takes_the_checkpoint_for_sdxl(measured: dict[str, Any]) -> None:
    assert measured["model"] == ["SDXL", "Segmind_Vega"] and measured["resolution"] == 64


@slow
def test_the_conditioning_is_the_hosts_with_and_without_a_lora(measured: dict[str, Any]) -> None:
    assert measured["encode"] < 1e-3 and measured["encode_lora"] < 1e-3 < measured["lora_changes"], measured
    assert measured["library_encode"] < 1e-4, measured


@slow
@pytest.mark.parametrize("kind", ["eps", "v", "ztsnr"])
def test_predictions_and_gradients_equal_the_librarys(measured: dict[str, Any], kind: str) -> None:
    assert measured[kind]["prediction"] < 1e-3 and measured[kind]["gradient"] < 1e-3, measured
    assert max(measured[kind]["parts"].values()) < 1e-3, measured
    assert measured[kind]["pooled_gradient"] > 0, "the pooled vector has no effect"
    assert kind != "ztsnr" or measured[kind]["last_alpha"] < 1e-6


@slow
def test_the_users_objects_are_unchanged_after_loras_and_a_cancel(measured: dict[str, Any]) -> None:
    assert measured["lora_seen"] and measured["cancelled"] == "raised" and measured["untouched"], measured


@slow
@pytest.mark.parametrize(
    ("way", "raised"),
    [
        ("error", "OutOfMemoryError: CUDA out of memory"),
        ("divergence", "AdvUnlearnNodeError: loss nan"),
        ("cancel", "InterruptProcessingException"),
    ],
)
def test_a_training_that_stops_in_mid_run_leaves_the_users_objects_unchanged(
    measured: dict[str, Any], way: str, raised: str
) -> None:
    assert measured["stopped"][way]["raised"].startswith(raised), measured["stopped"]
    assert measured["stopped"][way]["unchanged"]


@slow
def test_both_encoders_are_replaced_each_at_its_strength(measured: dict[str, Any]) -> None:
    assert max(measured["replaced"].values()) < 1e-5, measured
