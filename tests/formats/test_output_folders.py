"""Folders that the library writes are read by transformers and diffusers without a missing or an unknown weight.

Run it with other versions of them as well: transformers 4 and 5 name a text encoder's weights differently.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_models import tiny_sdxl
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from advunlearn.files import TEXT_ENCODER_WEIGHTS, UNET_WEIGHTS
from advunlearn.formats.convert import convert
from advunlearn.formats.tensors import TENSORS_HASH
from advunlearn.formats.text_encoders import hash_encoder, save_encoder_folder
from advunlearn.formats.weights import open_weights
from advunlearn.miniature.checkpoint import write_folder
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.text_encoder import encoder_parts
from advunlearn.models.unet_files import save_unet

FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def read(kind: Any, folder: pathlib.Path) -> tuple[Any, dict[str, list[str]]]:
    """Return what a folder holds, and what its loader reports as wrong."""
    part, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    return part, {fault: sorted(map(str, info[fault])) for fault in FAULTS if info.get(fault)}


def read_encoder(kind: Any, folder: pathlib.Path, expected: Mapping[str, Tensor]) -> None:
    """Check that a text encoder's folder loads completely, with these weights."""
    encoder, faults = read(kind, folder)
    assert faults == {} and hash_encoder(encoder.state_dict()) == hash_encoder(expected)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> TextToImage:
    return load(str(tiny_sdxl(tmp_path_factory.mktemp("xl") / "model")))


def save_folder(model: TextToImage, out: pathlib.Path) -> None:
    save_encoder_folder(out, model.text_encoder, {"advunlearn.source": "a test"})  # type: ignore[arg-type]


def convert_folder(model: TextToImage, out: pathlib.Path) -> None:
    convert(f"{model.name}/text_encoder", out, "diffusers")


@pytest.mark.parametrize("write", [save_folder, convert_folder])
def test_a_text_encoders_folder(
    tiny_model: TextToImage, write: Callable[[TextToImage, pathlib.Path], None], tmp_path: pathlib.Path
) -> None:
    write(tiny_model, tmp_path)
    expected = tiny_model.text_encoder.state_dict()
    read_encoder(CLIPTextModel, tmp_path, expected)
    # The control: with one name less, its loader reports it.
    weights = load_file(tmp_path / TEXT_ENCODER_WEIGHTS[0])
    assert all(name.startswith("text_model.") for name in weights)
    del weights["text_model.final_layer_norm.weight"]
    save_file(weights, tmp_path / TEXT_ENCODER_WEIGHTS[0], {"format": "pt"})
    _, faults = read(CLIPTextModel, tmp_path)
    assert len(faults["missing_keys"]) == 1


def test_both_text_encoders_of_sdxl(xl: TextToImage, tmp_path: pathlib.Path) -> None:
    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    for part, kind in zip(encoder_parts(xl.text_encoder).values(), kinds, strict=True):
        read_encoder(kind, save_encoder_folder(tmp_path / kind.__name__, part), part.state_dict())  # type: ignore[arg-type]
    projection = read(CLIPTextModelWithProjection, tmp_path / kinds[1].__name__)[0].text_projection.weight
    assert torch.equal(projection, part.state_dict()["text_projection.weight"])


@pytest.mark.parametrize("name", ["tiny_model", "xl"])
def test_a_unets_folder(name: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> None:
    expected = request.getfixturevalue(name).denoiser.unet
    unet, faults = read(UNet2DConditionModel, save_unet(tmp_path / "unet", expected, {"advunlearn.lr": 1}))
    state = unet.state_dict()
    assert faults == {} and state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[key], weight) for key, weight in expected.state_dict().items())


def test_the_miniature_in_the_shape_of_stable_diffusion(tmp_path: pathlib.Path) -> None:
    write_folder(tmp_path)
    read_encoder(
        CLIPTextModel, tmp_path / "text_encoder", load_file(tmp_path / "text_encoder" / TEXT_ENCODER_WEIGHTS[0])
    )
    for kind, folder in ((UNet2DConditionModel, "unet"), (AutoencoderTiny, "vae")):
        part, faults = read(kind, tmp_path / folder)
        assert faults == {}
        with open_weights(tmp_path / folder / UNET_WEIGHTS[0]) as weights:
            assert TENSORS_HASH in weights.metadata and sorted(weights.names) == sorted(part.state_dict())
    assert CLIPTokenizer.from_pretrained(tmp_path / "tokenizer").model_max_length == 77
    assert DDIMScheduler.from_pretrained(tmp_path / "scheduler").config["prediction_type"] == "epsilon"
