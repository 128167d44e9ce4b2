from __future__ import annotations

import copy
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from advunlearn.errors import AdvUnlearnError
from advunlearn.formats.text_encoders import choose_file_dtype, export_state, read_encoder, save_encoder
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import TextToImage


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
    bare = {k.removeprefix("text_model."): v + 1 for k, v in export_state(model.text_encoder).items()}
    bare.pop("text_projection.weight")
    save_file(bare, tmp_path / "bare.safetensors")
    encoder, _ = load_encoder(tmp_path / "bare.safetensors", model.text_encoder)
    own = export_state(model.text_encoder)
    assert all(torch.equal(v, own[k] + 1) for k, v in export_state(encoder).items() if k != "text_projection.weight")


def damaged(model: TextToImage, damage: str) -> dict[str, torch.Tensor]:
    state = export_state(model.text_encoder)
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
        ("unknown", "has 1 more than 68 tensors"),
        ("shape", r"has 'final_layer_norm.bias' in shape \(768,\) and not \(192,\)"),
        ("unet", "holds no CLIP-L text encoder"),
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


def published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the layout of the published trainer's .pt: every tensor twice."""
    once = {"text_encoder." + k: v for k, v in state.items() if k.startswith("text_model.")}
    twice = {k.removeprefix("text_encoder.text_model."): v for k, v in once.items()}
    return once | twice


def in_checkpoint(start: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Return a maker of a full checkpoint: the encoder under its prefix, beside other weights."""
    other = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4)}
    return lambda state: {start + k.removeprefix("text_model."): v for k, v in state.items()} | other


LAYOUTS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "published": published,
    "sd1": in_checkpoint("cond_stage_model.transformer.text_model."),
    "first_sd": in_checkpoint("cond_stage_model.transformer."),
    "sdxl": in_checkpoint("conditioner.embedders.0.transformer.text_model."),
    "position_ids": lambda state: state | {"text_model.embeddings.position_ids": torch.arange(77)[None]},
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_encoder_is_found_in_every_container(
    model: TextToImage, tmp_path: pathlib.Path, layout: str, suffix: str
) -> None:
    own = {k: v + 1 for k, v in export_state(model.text_encoder).items() if k.startswith("text_model.")}
    tensors, path = {k: v.clone() for k, v in LAYOUTS[layout](own).items()}, tmp_path / f"file{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    found, _ = read_encoder(path)
    assert found.keys() == own.keys() and all(torch.equal(found[k], own[k]) for k in own)


def test_a_saved_folder_is_read_too(model: TextToImage, tmp_path: pathlib.Path) -> None:
    model.text_encoder.save_pretrained(tmp_path / "text_encoder")
    encoder, _ = load_encoder(tmp_path, model.text_encoder)
    assert all(
        torch.equal(a, b)
        for a, b in zip(encoder.state_dict().values(), model.text_encoder.state_dict().values(), strict=True)
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdvUnlearnError, match="holds none of model.safetensors, pytorch_model.bin"):
        read_encoder(tmp_path / "empty")


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never run",))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(AdvUnlearnError, match="cannot be read as weights alone"):
        read_encoder(tmp_path / "evil.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "a T5 encoder"),
        ("transformer.resblocks.0.ln_1.weight", "an OpenCLIP encoder"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "a LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a checkpoint without its text encoder"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: pathlib.Path, key: str, says: str) -> None:
    save_file({key: torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(AdvUnlearnError, match=says):
        read_encoder(tmp_path / "other.safetensors")


def test_a_saved_file_can_be_read_by_others_as_the_umask_says(model: TextToImage, tmp_path: pathlib.Path) -> None:
    (tmp_path / "plain").write_text("")
    path = save_encoder(tmp_path / "encoder.safetensors", model.text_encoder, {})
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_encoder_of_full_size_is_saved_in_fp16_and_says_so(model: TextToImage, tmp_path: pathlib.Path) -> None:
    path = save_encoder(tmp_path / "half.safetensors", model.text_encoder, {}, torch.float16)
    tensors, metadata = read_encoder(path)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    expected = export_state(model.text_encoder)
    assert all(torch.equal(tensor, expected[name].half()) for name, tensor in tensors.items())
    assert metadata["advunlearn.dtype"] == "trained in float32, saved in float16"
    assert next(model.text_encoder.parameters()).dtype == torch.float32  # training and states keep theirs
    with torch.device("meta"):
        small, large = (torch.nn.Linear(2**12, rows, bias=False) for rows in (2**11, 2**12))  # 32 and 64 MiB
    assert choose_file_dtype("auto", small) == choose_file_dtype("float32", large) == torch.float32
    assert choose_file_dtype("auto", large) == choose_file_dtype("float16", small) == torch.float16


def test_a_weight_too_large_for_fp16_is_refused(model: TextToImage, tmp_path: pathlib.Path) -> None:
    encoder = copy.deepcopy(model.text_encoder)
    encoder.get_input_embeddings().weight.data[0, 0] = 70_000  # fp16 ends at 65,504
    with pytest.raises(AdvUnlearnError, match="not written"):
        save_encoder(tmp_path / "half.safetensors", encoder, {}, torch.float16)
