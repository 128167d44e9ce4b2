"""Refusals say what the file is: files of other encoders, in their true layouts with their true widths."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from encoder_layouts import openclip_layout, t5_layout, transformers_layout
from safetensors.torch import save_file

from advunlearn.errors import AdvUnlearnError
from advunlearn.formats.text_encoders import export_state, read_encoder
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import TextToImage

Tensors = dict[str, torch.Tensor]


SDXL_G = "SDXL's CLIP-G (OpenCLIP ViT-bigG), 1280 wide"
SD2 = "Stable Diffusion 2's text encoder (OpenCLIP ViT-H), 1024 wide"
WIDE: dict[str, tuple[Tensors, str]] = {
    "clip_g": (transformers_layout(1280, 32), f"is {SDXL_G}, 32 layers; this model needs"),
    "clip_g_without_prefix": (transformers_layout(1280, 32, ""), f"is {SDXL_G}, 32 layers; this model needs"),
    "sd2": (transformers_layout(1024, 23), f"is {SD2}, 23 layers; this model needs"),
    "clip_b": (transformers_layout(512, 12), "is CLIP ViT-B's text encoder, 512 wide, 12 layers; this model needs"),
    "clip_l": (transformers_layout(768, 12), "is CLIP-L, 768 wide, 12 layers; this model needs"),
}
OTHERS: dict[str, tuple[Tensors, str]] = {
    "openclip_g": (openclip_layout(1280, 32), f"it is {SDXL_G}, in OpenCLIP's layout"),
    "sd2_checkpoint": (openclip_layout(1024, 24, "cond_stage_model.model."), f"it is {SD2}, in OpenCLIP's layout"),
    "t5": (t5_layout(), "it is a T5 encoder"),
    "t5_in_a_checkpoint": (t5_layout("text_encoders.t5xxl.transformer."), "it is a T5 encoder"),
    "vision": (
        transformers_layout(1024, 24, "vision_model.")
        | {"vision_model.embeddings.patch_embedding.weight": torch.zeros(1024)},
        "it is a CLIP vision encoder",
    ),
    "vision_without_prefix": (
        transformers_layout(1024, 24, "") | {"embeddings.patch_embedding.weight": torch.zeros(1024)},
        "it is a CLIP vision encoder",
    ),
    "llama": ({"model.layers.0.self_attn.q_proj.weight": torch.zeros(1)}, "it is a language model"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, "it is a diffusion transformer (Flux)"),
    "unknown": ({"b": torch.zeros(1), "a": torch.zeros(1)}, "its first tensor is 'a'"),
    "empty": ({}, "its first tensor is 'nothing'"),
}


def one_sentence(error: Any, says: str) -> bool:
    """Return whether a refusal says so, names the file once and is one line."""
    text = str(error.value)
    return says in text and text.count("other.safetensors") == 1 and "\n" not in text


@pytest.mark.parametrize("kind", WIDE)
def test_an_encoder_of_another_width_is_named(model: TextToImage, tmp_path: pathlib.Path, kind: str) -> None:
    save_file(WIDE[kind][0], tmp_path / "other.safetensors")
    with pytest.raises(AdvUnlearnError) as error:
        load_encoder(tmp_path / "other.safetensors", model.text_encoder)
    assert one_sentence(error, WIDE[kind][1])


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_without_a_clip_text_encoder_is_named(tmp_path: pathlib.Path, kind: str) -> None:
    save_file(OTHERS[kind][0], tmp_path / "other.safetensors")
    with pytest.raises(AdvUnlearnError) as error:
        read_encoder(tmp_path / "other.safetensors")
    assert one_sentence(error, "holds no CLIP-L text encoder: ") and one_sentence(error, OTHERS[kind][1])


def test_clip_l_is_still_found_beside_the_others(model: TextToImage, tmp_path: pathlib.Path) -> None:
    own = {k: v for k, v in export_state(model.text_encoder).items() if k.startswith("text_model.")}
    sdxl = {"conditioner.embedders.0.transformer." + k: v for k, v in own.items()}
    sdxl |= openclip_layout(1280, 32, "conditioner.embedders.1.model.") | t5_layout("text_encoders.t5xxl.transformer.")
    save_file(sdxl, tmp_path / "sdxl.safetensors")
    found, _ = read_encoder(tmp_path / "sdxl.safetensors")
    assert found.keys() == own.keys() and all(torch.equal(found[k], own[k]) for k in own)
