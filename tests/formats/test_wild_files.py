"""Text encoders as they are shared: OpenAI's layout, scaled fp8, added tokens, shards, variants, Lightning pickles."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import types
from typing import Any

import numpy
import pytest
import torch
from encoder_layouts import is_same
from safetensors.torch import load_file, save_file
from torch import Tensor

from advunlearn.cli.main import main
from advunlearn.errors import AdvUnlearnError
from advunlearn.formats.convert import convert
from advunlearn.formats.encoder_config import compute_encoder_shapes
from advunlearn.formats.inspect import inspect_file
from advunlearn.formats.openclip import to_openclip
from advunlearn.formats.single_file import load_sd15_config
from advunlearn.formats.text_encoders import export_state, read_encoder
from advunlearn.formats.weights import open_weights
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.tokenizer import tokenize

ROOT = pathlib.Path(__file__).parents[2]
LAYER = "text_model.encoder.layers.1.mlp.fc1."
TABLE = "text_model.embeddings.token_embedding.weight"
POSITIONS = "text_model.embeddings.position_embedding.weight"
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def state(tiny_model: TextToImage) -> Tensors:
    """The tiny model's encoder, without the projection that only files of this library have."""
    tensors = export_state(tiny_model.text_encoder)
    return {name: tensor.clone() for name, tensor in tensors.items() if name.startswith("text_model.")}


def clip_l(layers: int = 1) -> Tensors:
    """Return a CLIP-L of one layer, with a short table."""
    generator = torch.Generator().manual_seed(0)
    shapes = compute_encoder_shapes(load_sd15_config("text_encoder") | {"num_hidden_layers": layers, "vocab_size": 9})
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_clip_l_in_openais_layout_is_read_as_comfyui_converts_it(tmp_path: pathlib.Path) -> None:
    state = clip_l()
    openai = to_openclip(state) | {"text_projection": torch.eye(768), "logit_scale": torch.tensor(4.6)}
    openai |= {"visual.transformer.resblocks.0.ln_1.weight": torch.ones(1024), "visual.proj": torch.ones(2, 3)}
    assert torch.equal(
        openai["transformer.resblocks.0.attn.in_proj_weight"][768:1536],
        state[LAYER.replace("1.mlp.fc1.", "0.self_attn.k_proj.") + "weight"],
    )
    save_file(openai, tmp_path / "openai.safetensors")
    found, _ = read_encoder(tmp_path / "openai.safetensors")
    assert is_same(found, state)
    facts = inspect_file(str(tmp_path / "openai.safetensors"))
    assert facts["kind"].startswith("CLIP-L, 768 wide") and facts["layers"] == 1 and facts["vocabulary"] == 9


@pytest.mark.parametrize("shape", [(), (1,), (64,), (64, 1)])
def test_scaled_fp8_is_the_product_of_weight_and_scale(
    state: Tensors, tmp_path: pathlib.Path, shape: tuple[int, ...]
) -> None:
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    rows = scale.reshape(-1, 1)
    stored = (state[LAYER + "weight"] / rows).to(torch.float8_e4m3fn)
    fp8 = {LAYER + "weight": stored, LAYER + "scale_weight": scale, LAYER + "scale_input": torch.ones(())}
    save_file(state | fp8 | {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    found, _ = read_encoder(tmp_path / "a.safetensors")
    assert found.keys() == state.keys() and torch.equal(found[LAYER + "weight"], stored.float() * rows)
    assert torch.allclose(found[LAYER + "weight"], state[LAYER + "weight"], rtol=0.07, atol=0.01)  # 3 bits of mantissa
    save_file(state | fp8 | {LAYER + "scale_weight": torch.ones(5)}, tmp_path / "b.safetensors")
    with pytest.raises(AdvUnlearnError, match="scale_weight' is .5,., no scale of"):
        read_encoder(tmp_path / "b.safetensors")


def test_added_token_embeddings_are_left_out_and_counted(
    tiny_model: TextToImage, tiny_folder: pathlib.Path, state: Tensors, tmp_path: pathlib.Path
) -> None:
    table = torch.cat([state[TABLE], torch.ones(49408 + 3 - len(state[TABLE]), 32)])
    save_file(state | {TABLE: table}, tmp_path / "grown.safetensors")
    found, _ = read_encoder(tmp_path / "grown.safetensors")
    assert torch.equal(found[TABLE], table[:49408])
    if len(state[TABLE]) == 49408:
        encoder, _ = load_encoder(tmp_path / "grown.safetensors", tiny_model.text_encoder)
        assert torch.equal(encoder.get_input_embeddings().weight, state[TABLE])  # type: ignore[operator]
        done = convert(str(tmp_path / "grown.safetensors"), tmp_path / "a.safetensors", "safetensors", str(tiny_folder))
        assert "; 3 added token embeddings are left out" in done.text


def test_longclip_is_named(tiny_model: TextToImage, state: Tensors, tmp_path: pathlib.Path) -> None:
    save_file(state | {POSITIONS: torch.zeros(248, 32)}, tmp_path / "long.safetensors")
    with pytest.raises(AdvUnlearnError, match="is LongCLIP, which reads 248 tokens; this model's encoder reads 77"):
        load_encoder(tmp_path / "long.safetensors", tiny_model.text_encoder)


def test_convert_to_pt_is_read_by_the_published_loader(
    tiny_folder: pathlib.Path, state: Tensors, tmp_path: pathlib.Path
) -> None:
    save_file(state, tmp_path / "a.safetensors")
    out = str(tmp_path / "a.pt")
    assert main(["convert", str(tmp_path / "a.safetensors"), out, "--to", "pt", "--base", str(tiny_folder)]) == 0
    # The published loader: what has this in its name, without the prefix.
    full = torch.load(out)
    taken = {name.replace("text_encoder.", ""): full[name] for name in full if "text_encoder.text_model" in name}
    assert is_same(taken, state) and len(full) == len(taken)
    assert is_same(read_encoder(out)[0], state)
    with pytest.raises(AdvUnlearnError, match="give a name that ends in .pt"):
        convert(str(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", "pt", str(tiny_folder))


def shard(folder: pathlib.Path, file: str, index: str) -> None:
    """Split a folder's weights into two files with an index."""
    tensors = load_file(folder / file)
    stem = file.removesuffix(".safetensors")
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for place in names:
        save_file({name: tensors[name] for name in tensors if places[name] == place}, folder / place, {"format": "pt"})
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    (folder / file).unlink()


PARTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


@pytest.mark.parametrize("kind", ["fp16", "shards", "cache"])
def test_variants_shards_and_cache_folders_are_read(
    tiny_model: TextToImage, tiny_folder: pathlib.Path, tmp_path: pathlib.Path, kind: str
) -> None:
    folder = tmp_path / "model" if kind != "cache" else tmp_path / "models--a--b" / "snapshots" / "0123abc"
    shutil.copytree(tiny_folder, folder)
    for part, file in PARTS.items():
        if kind == "fp16":
            (folder / part / file).rename(folder / part / file.replace(".saf", ".fp16.saf"))
        elif kind == "shards":
            shard(folder / part, file, file + ".index.json")
    given = folder if kind != "cache" else tmp_path / "models--a--b"
    loaded = load(str(given))
    assert loaded.fingerprints() == tiny_model.fingerprints()
    encoder, _ = load_encoder(folder / "text_encoder", tiny_model.text_encoder)
    assert is_same(export_state(encoder), export_state(tiny_model.text_encoder))
    if kind == "shards":
        (folder / "text_encoder" / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(AdvUnlearnError, match="names 'model-00002-of-00002.safetensors', which is not next to it"):
            load(str(folder))


def test_a_folder_without_weights_says_what_lies_there(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(
        AdvUnlearnError, match=r"holds none of model.safetensors, pytorch_model.bin \(it has 'tf_model.h5'\)"
    ):
        read_encoder(tmp_path)


def test_a_cache_folder_with_two_revisions_and_no_main_asks_for_one(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
    with pytest.raises(AdvUnlearnError, match="holds 2 revisions in its folder snapshots; give one of them"):
        read_encoder(tmp_path)


@pytest.mark.parametrize("change", ["no length", "no configuration"])
def test_a_tokenizer_that_states_no_length_pads_to_the_encoders(
    tiny_model: TextToImage, tiny_folder: pathlib.Path, tmp_path: pathlib.Path, change: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    file = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["model_max_length"]
    file.write_text(json.dumps(config)) if change == "no length" else file.unlink()
    ids = tokenize(load(str(folder)).tokenizer, ["a church"])
    assert ids.shape == (1, 77) and torch.equal(ids, tokenize(tiny_model.tokenizer, ["a church"]))


def lightning_module(name: str) -> type:
    """Return a class that pickles name as one of Lightning's."""
    module = types.ModuleType("pytorch_lightning.callbacks")
    sys.modules["pytorch_lightning.callbacks"] = module
    sys.modules.setdefault("pytorch_lightning", types.ModuleType("pytorch_lightning"))
    made = type(name, (), {"__module__": "pytorch_lightning.callbacks"})
    setattr(module, name, made)
    return made


def test_the_tensors_of_a_lightning_checkpoint_are_read(state: Tensors, tmp_path: pathlib.Path) -> None:
    callback = lightning_module("ModelCheckpoint")
    instance = callback()
    instance.best = 3  # type: ignore[attr-defined]
    content: dict[str, Any] = {"epoch": 3, "callbacks": {callback: {"best": numpy.float64(0.5)}, "more": instance}}
    try:
        torch.save(
            content | {"state_dict": {f"cond_stage_model.transformer.{k}": v for k, v in state.items()}},
            tmp_path / "a.ckpt",
        )
    finally:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            sys.modules.pop(name)
    found, _ = read_encoder(tmp_path / "a.ckpt")
    assert is_same(found, state)


class Unknown:
    """A class of the person who saved the file."""


def test_other_classes_are_named_with_the_command_that_converts(state: Tensors, tmp_path: pathlib.Path) -> None:
    torch.save({"state_dict": state, "trainer": Unknown()}, tmp_path / "a.ckpt")
    with pytest.raises(
        AdvUnlearnError, match=rf"it holds '{__name__}.Unknown', which may run code.*python -c"
    ) as refused:
        read_encoder(tmp_path / "a.ckpt")
    code = str(refused.value).split('python -c "')[1].removesuffix('"')
    folders = ("tests/formats", "tests/support", ".")  # where the class is, and what its module imports
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in folders)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert is_same(read_encoder(tmp_path / "a.safetensors")[0], state)


LORA = "text_model.encoder.layers.0.mlp.fc1"
KINDS = {
    "a LoHa": {f"lora_te_{LORA.replace('.', '_')}.hada_w1_a": 1},
    "a LoKr": {f"lora_te_{LORA.replace('.', '_')}.lokr_w1": 1},
    "an OFT": {f"lora_te_{LORA.replace('.', '_')}.oft_blocks": 1},
    "a DoRA": {
        f"lora_te_{LORA.replace('.', '_')}.dora_scale": 1,
        f"lora_te_{LORA.replace('.', '_')}.lora_up.weight": 1,
    },
    "a LoRA .PEFT": {f"text_encoder.{LORA}.lora_A.weight": 1},
    "a textual inversion embedding": {"clip_l": 2, "clip_g": 2},
    "a textual inversion embedding: name": {"<cat-toy>": 2},
    "a textual inversion": {"emb_params": 2},
}


@pytest.mark.parametrize("says", KINDS)
def test_adapters_and_embeddings_are_named(says: str, tmp_path: pathlib.Path) -> None:
    save_file({name: torch.zeros([2] * dim) for name, dim in KINDS[says].items()}, tmp_path / "a.safetensors")
    with pytest.raises(AdvUnlearnError, match=f"it is {says}"):
        read_encoder(tmp_path / "a.safetensors")


CONTENTS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "is a Git LFS pointer, not the file itself",
    b"<!DOCTYPE html><html>": "is a web page, not the file that it links to",
    b"GGUF\x03\0\0\0": "is a GGUF file, whose weights are quantized",
    b"\x89HDF\r\n": "is an HDF5 file",
    b"": "is empty",
    b'{"error": "gated"}': "it is JSON",
    pickle.dumps({}): "is a pickle with the ending '.safetensors'; rename it to a.ckpt",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_what_is_no_file_of_weights_is_named(content: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(AdvUnlearnError, match=CONTENTS[content]), open_weights(tmp_path / "a.safetensors"):
        pass


def test_safetensors_with_a_pickles_ending_is_named(state: Tensors, tmp_path: pathlib.Path) -> None:
    save_file(state, tmp_path / "a.ckpt")
    with pytest.raises(
        AdvUnlearnError, match="is a safetensors file with the ending '.ckpt'; rename it to a.safetensors"
    ):
        read_encoder(tmp_path / "a.ckpt")
