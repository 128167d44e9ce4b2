from __future__ import annotations

import json
import pathlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from advunlearn.errors import AdvUnlearnError
from advunlearn.formats import load_encoder, portable_state, save_encoder
from advunlearn.models import TextToImage


def test_round_trip_is_bit_exact_and_keys_are_those_every_loader_expects(
    model: TextToImage, tmp_path: pathlib.Path
) -> None:
    path = save_encoder(tmp_path / "a" / "encoder.safetensors", model.text_encoder, {"advunlearn.recipe": {"lr": 1e-5}})
    tensors = load_file(path)
    assert all(k.startswith("text_model.") for k in tensors if k != "text_projection.weight")
    assert torch.equal(tensors["text_projection.weight"], torch.eye(192))
    assert "text_model.encoder.layers.3.mlp.fc2.bias" in tensors and "text_model.final_layer_norm.weight" in tensors
    encoder, metadata = load_encoder(path, model.text_encoder)
    assert json.loads(metadata["advunlearn.recipe"]) == {"lr": 1e-5}
    assert all(
        torch.equal(a, b)
        for a, b in zip(encoder.state_dict().values(), model.text_encoder.state_dict().values(), strict=True)
    )
    assert not list(tmp_path.rglob("*.partial"))


def test_keys_without_the_prefix_are_read_too(model: TextToImage, tmp_path: pathlib.Path) -> None:
    bare = {k.removeprefix("text_model."): v + 1 for k, v in portable_state(model.text_encoder).items()}
    bare.pop("text_projection.weight")
    save_file(bare, tmp_path / "bare.safetensors")
    encoder, _ = load_encoder(tmp_path / "bare.safetensors", model.text_encoder)
    own = portable_state(model.text_encoder)
    assert all(torch.equal(v, own[k] + 1) for k, v in portable_state(encoder).items() if k != "text_projection.weight")


def damaged(model: TextToImage, damage: str) -> dict[str, torch.Tensor]:
    state = portable_state(model.text_encoder)
    if damage == "missing":
        del state["text_model.encoder.layers.2.mlp.fc1.bias"]
    elif damage == "unknown":
        state["text_model.encoder.layers.4.mlp.fc1.bias"] = torch.zeros(768)
    elif damage == "shape":
        state["text_model.final_layer_norm.bias"] = torch.zeros(768)
    else:
        state = {"unet.conv_in.weight": torch.zeros(1)}
    return state


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("missing", "lacks 1 of 68 tensors, first 'encoder.layers.2.mlp.fc1.bias'"),
        ("unknown", "has unknown 1 of 68 tensors"),
        ("shape", r"'final_layer_norm.bias' has shape \(768,\), this model needs \(192,\)"),
        ("unet", "holds no CLIP text encoder"),
    ],
)
def test_refusals_name_what_is_wrong_and_change_nothing(
    model: TextToImage, tmp_path: pathlib.Path, damage: str, says: str
) -> None:
    save_file(damaged(model, damage), tmp_path / "bad.safetensors")
    with pytest.raises(AdvUnlearnError, match=says):
        load_encoder(tmp_path / "bad.safetensors", model.text_encoder)


def test_no_file_and_no_safetensors_file(model: TextToImage, tmp_path: pathlib.Path) -> None:
    with pytest.raises(AdvUnlearnError, match="no such file"):
        load_encoder(tmp_path / "none.safetensors", model.text_encoder)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(AdvUnlearnError, match="not a readable safetensors file"):
        load_encoder(tmp_path / "text.safetensors", model.text_encoder)
