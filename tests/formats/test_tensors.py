"""NaN, infinity and integers are refused wherever weights are read or written; a changed byte is found by its hash."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from advunlearn.errors import AdvUnlearnError
from advunlearn.formats.convert import convert
from advunlearn.formats.inspect import inspect_file
from advunlearn.formats.tensors import TENSORS_HASH, hash_tensors, is_finite, write_safetensors
from advunlearn.formats.text_encoders import export_state, read_encoder, save_encoder
from advunlearn.formats.weights import open_weights
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.unet_files import load_unet, save_unet

NAME = "text_model.encoder.layers.1.mlp.fc1.weight"
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, *FP8])
def test_one_nan_or_infinity_among_all_values_is_seen_in_every_dtype(dtype: torch.dtype) -> None:
    values = torch.linspace(-200, 200, 1001)
    assert (
        is_finite(values.to(dtype))
        and is_finite(torch.zeros(0, dtype=dtype))
        and is_finite(torch.ones((), dtype=dtype))
    )
    values[500] = torch.nan
    assert not is_finite(values.to(dtype))
    values[500] = -torch.inf
    stored = values.to(dtype)  # what has no infinity stores NaN or its largest number
    assert is_finite(stored) == bool(stored.float().isfinite().all())


def with_value(model: TextToImage, value: float) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in export_state(model.text_encoder).items()}
    state[NAME][3, 5] = value
    return state


@pytest.mark.parametrize(("value", "says"), [(float("nan"), "NaN"), (float("inf"), "infinite numbers")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_encoder_that_is_not_finite_is_refused_everywhere_and_the_tensor_is_named(
    tiny_model: TextToImage, tmp_path: pathlib.Path, value: float, says: str, suffix: str
) -> None:
    state = with_value(tiny_model, value)
    file = tmp_path / f"bad{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    message = f"'{NAME}' has {says} .1 of 2048 values are not finite"
    for call in (
        lambda: load_encoder(file, tiny_model.text_encoder),
        lambda: read_encoder(file),
        lambda: inspect_file(str(file)),
        lambda: convert(str(file), tmp_path / "out.safetensors", "safetensors"),
    ):
        with pytest.raises(AdvUnlearnError, match=message):
            call()
    assert not list(tmp_path.glob("out*"))


def test_nothing_that_is_not_finite_is_written(tiny_model: TextToImage, tmp_path: pathlib.Path) -> None:
    encoder, _ = load_encoder(
        save_encoder(tmp_path / "a.safetensors", tiny_model.text_encoder, {}), tiny_model.text_encoder
    )
    encoder.get_parameter(NAME if NAME in encoder.state_dict() else NAME.removeprefix("text_model.")).data[0, 0] = (
        torch.nan
    )
    with pytest.raises(AdvUnlearnError, match=f"b.safetensors was not written: '{NAME}' has NaN"):
        save_encoder(tmp_path / "b.safetensors", encoder, {})
    assert not (tmp_path / "b.safetensors").exists()


def test_a_unet_and_a_model_that_are_not_finite_are_refused(
    tiny_model: TextToImage, tiny_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    for part, file in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        path = folder / part / f"{file}.safetensors"
        tensors = load_file(path)
        name = max(name for name in tensors if tensors[name].dtype.is_floating_point)
        save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, path, {"format": "pt"})
        with pytest.raises(AdvUnlearnError, match=f"'{name}' has NaN"):
            load(str(folder))
        if part == "unet":
            with pytest.raises(AdvUnlearnError, match=f"'{name}' has NaN"):
                load_unet(folder, tiny_model.denoiser)
        save_file(tensors, path, {"format": "pt"})
    assert load(str(folder)).base_hash() == tiny_model.base_hash()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8])
def test_weights_that_are_integers_are_refused(
    tiny_model: TextToImage, tmp_path: pathlib.Path, dtype: torch.dtype
) -> None:
    state = export_state(tiny_model.text_encoder)
    save_file(state | {NAME: state[NAME].to(dtype)}, tmp_path / "bad.safetensors")
    with pytest.raises(
        AdvUnlearnError, match=f"'{NAME}' holds {str(dtype)[6:]} numbers, and weights are floating-point"
    ):
        load_encoder(tmp_path / "bad.safetensors", tiny_model.text_encoder)


def test_the_hash_in_the_metadata_is_that_of_names_dtypes_shapes_and_bytes(tmp_path: pathlib.Path) -> None:
    # SHA-256 of b"a\0float32\0[2]\0" and the bytes of 1.0 and 2.0, with hashlib alone.
    import hashlib
    import struct

    tensors = {"a": torch.tensor([1.0, 2.0])}
    expected = hashlib.sha256(b"a\0float32\0[2]\0" + struct.pack("<2f", 1, 2)).hexdigest()
    assert hash_tensors(tensors) == expected
    write_safetensors(
        tmp_path / "a.safetensors", tensors, {"advunlearn.x": "y", TENSORS_HASH: "of the file it is from"}
    )
    with open_weights(tmp_path / "a.safetensors") as weights:
        assert weights.metadata == {"advunlearn.x": "y", TENSORS_HASH: expected}
    for other in ({"b": tensors["a"]}, {"a": tensors["a"][None]}, {"a": tensors["a"].double()}, {"a": -tensors["a"]}):
        assert hash_tensors(other) != expected


def test_each_flipped_bit_of_a_file_of_ours_is_refused(tiny_model: TextToImage, tmp_path: pathlib.Path) -> None:
    whole = save_encoder(tmp_path / "a.safetensors", tiny_model.text_encoder, {}).read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    random = torch.Generator().manual_seed(0)
    for _ in range(10):
        position = int(torch.randint(start, len(whole), (1,), generator=random))
        bit = int(torch.randint(8, (1,), generator=random))
        changed = bytearray(whole)
        changed[position] ^= 1 << bit
        (tmp_path / "b.safetensors").write_bytes(changed)
        with pytest.raises(
            AdvUnlearnError, match=r"damaged or was changed: the SHA-256 of its tensors is .*tensors_sha256"
        ):
            load_encoder(tmp_path / "b.safetensors", tiny_model.text_encoder)
    load_encoder(tmp_path / "a.safetensors", tiny_model.text_encoder)


def test_a_flipped_bit_of_a_unet_of_ours_is_refused(tiny_model: TextToImage, tmp_path: pathlib.Path) -> None:
    folder = save_unet(tmp_path / "unet", tiny_model.denoiser.unet, {})
    path = folder / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdvUnlearnError, match="tensors_sha256"):
        load_unet(folder, tiny_model.denoiser)


def test_a_broken_config_next_to_the_weights_is_named(tmp_path: pathlib.Path) -> None:
    from encoder_layouts import transformers_layout

    table = {"text_model.embeddings.token_embedding.weight": torch.zeros(99, 64)}
    save_file(transformers_layout(64, 1) | table, tmp_path / "model.safetensors")
    config = {"hidden_size": 64, "vocab_size": 99, "num_hidden_layers": 1, "num_attention_heads": 4}
    for text, says in (
        ("{", "config.json cannot be read"),
        ("[" * 100_000, "config.json cannot be read"),
        ("[]", "config.json is no configuration: it holds list"),
        (
            json.dumps(config | {"num_hidden_layers": 10**9}),
            "num_hidden_layers is '1000000000'; it must be a number from 1",
        ),
        (json.dumps(config | {"num_attention_heads": "many"}), "num_attention_heads is 'many'"),
        (json.dumps(config | {"num_attention_heads": 5}), "hidden_size 64 is not divisible by 5 heads"),
        (json.dumps(config | {"hidden_act": 3}), "no CLIP text encoder has such a configuration"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(AdvUnlearnError, match=says):
            convert(str(tmp_path), tmp_path / "out.safetensors", "safetensors")
