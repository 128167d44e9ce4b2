"""Round trips through every format, and what `info` says of the files."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import pytest
import torch
from encoder_layouts import is_same
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from advunlearn import miniature
from advunlearn.cli.main import main
from advunlearn.errors import AdvUnlearnError
from advunlearn.formats.convert import convert
from advunlearn.formats.lora import extract_lora
from advunlearn.formats.text_encoders import export_state, read_encoder, save_encoder
from advunlearn.formats.weights import open_weights
from advunlearn.models.loading import TextToImage

MINIATURE = str(miniature.path())
Tensors = dict[str, torch.Tensor]
UNET = "model.diffusion_model."
REST: Tensors = {
    UNET + "input_blocks.0.0.weight": torch.randn(3, 4, 1, 1).half(),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.randn(2, 768),
    "first_stage_model.decoder.conv_in.bias": torch.randn(3, dtype=torch.float64).to(torch.bfloat16),
    "alphas_cumprod": torch.rand(1000),
    "model_ema.num_updates": torch.tensor(7),
}
METADATA = {"format": "pt", "modelspec.title": "a model", "modelspec.hash_sha256": "0x12", "ss_note": "kept"}


def encoder_of(model: TextToImage, dtype: torch.dtype, change: float = 0.0) -> Tensors:
    """Return the miniature's encoder, all of it changed a little, without the projection."""
    state = {k: v for k, v in export_state(model.text_encoder).items() if k.startswith("text_model.")}
    generator = torch.Generator().manual_seed(0)
    return {k: (v + change * torch.randn(v.shape, generator=generator)).to(dtype) for k, v in state.items()}


def in_our_file(state: Tensors, folder: pathlib.Path) -> pathlib.Path:
    save_file(state, folder / "a.safetensors", {"format": "pt", "advunlearn.concept": "church"})
    return folder / "a.safetensors"


def in_the_published_trainers(state: Tensors, folder: pathlib.Path) -> pathlib.Path:
    once = {"text_encoder." + k: v for k, v in state.items()}
    torch.save(once | {k.removeprefix("text_model."): v for k, v in state.items()}, folder / "a.pt")
    return folder / "a.pt"


def in_a_folder(state: Tensors, folder: pathlib.Path) -> pathlib.Path:
    torch.save({k.removeprefix("text_model."): v for k, v in state.items()}, folder / "pytorch_model.bin")
    return folder


def under(start: str, rest: Tensors = REST) -> Callable[[Tensors, pathlib.Path], pathlib.Path]:
    """Return how to write a file that has the encoder under a prefix, beside other tensors."""

    def write(state: Tensors, folder: pathlib.Path) -> pathlib.Path:
        tensors = {start + k.removeprefix("text_model."): v for k, v in state.items()} | rest
        save_file({k: v.clone() for k, v in tensors.items()}, folder / "a.safetensors", METADATA)
        return folder / "a.safetensors"

    return write


READ = {
    "our file": in_our_file,
    "without the prefix": under("", {}),
    "published trainer": in_the_published_trainers,
    "bin in a folder": in_a_folder,
    "SD 1.x": under("cond_stage_model.transformer.text_model."),
    "the first SD": under("cond_stage_model.transformer."),
    "SDXL": under("conditioner.embedders.0.transformer.text_model."),
    "SDXL, without": under("conditioner.embedders.0.transformer."),
    "ComfyUI's": under("text_encoders.clip_l.transformer.text_model."),
    "ComfyUI's, without": under("clip_l.transformer."),
}


@pytest.mark.parametrize("to", ["safetensors", "diffusers", "checkpoint"])
@pytest.mark.parametrize("layout", READ)
def test_every_round_trip_is_bit_exact(model: TextToImage, tmp_path: pathlib.Path, layout: str, to: str) -> None:
    dtype = torch.float16 if layout in ("our file", "SDXL") else torch.float32
    state, base, out = encoder_of(model, dtype, 0.1), tmp_path / "base", tmp_path / "out.safetensors"
    base.mkdir()
    checkpoint = under("cond_stage_model.transformer.")(encoder_of(model, torch.float16), base)
    source, place = READ[layout](state, tmp_path), tmp_path / ("folder" if to == "diffusers" else "there.safetensors")
    convert(str(source), place, to, str(checkpoint) if to == "checkpoint" else MINIATURE)
    convert(str(place), out, "safetensors", MINIATURE)
    found, metadata = read_encoder(out)
    assert is_same(found, state) and torch.equal(load_file(out)["text_projection.weight"], torch.eye(192, dtype=dtype))
    if layout == "our file":
        assert metadata["advunlearn.concept"] == "church"
    assert not list(tmp_path.rglob("*.partial"))
    if to == "checkpoint":
        before, after = load_file(checkpoint), load_file(place)
        assert is_same({k: after[k] for k in REST}, {k: before[k] for k in REST}) and before.keys() == after.keys()
        with safe_open(place, "pt") as file:
            kept = {k: v for k, v in METADATA.items() if k != "modelspec.hash_sha256"}  # it is another file now
            assert kept.items() <= file.metadata().items() and "modelspec.hash_sha256" not in file.metadata()


def test_a_diffusers_folder_loads_in_transformers_as_it_was(model: TextToImage, tmp_path: pathlib.Path) -> None:
    from transformers import CLIPTextModel

    convert(str(in_our_file(encoder_of(model, torch.float32, 0.1), tmp_path)), tmp_path / "to", "diffusers", MINIATURE)
    loaded = CLIPTextModel.from_pretrained(tmp_path / "to")
    assert loaded.config.num_attention_heads == 12 and loaded.dtype == torch.float32
    own = {"text_model." + k.removeprefix("text_model."): v for k, v in loaded.state_dict().items()}
    assert is_same({k: own[k] for k in own if "position_ids" not in k}, encoder_of(model, torch.float32, 0.1))


def test_a_lora_holds_what_was_made_and_says_what_it_leaves_out(
    model: TextToImage, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, out = encoder_of(model, torch.float32, 0.01), tmp_path / "lora.safetensors"
    source = str(in_our_file(state, tmp_path))
    assert main(["convert", source, str(out), "--to", "lora", "--base", "miniature", "--rank", "4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    made = extract_lora(encoder_of(model, torch.float32), state, 4)
    with open_weights(out) as weights:
        assert is_same({name: weights.read(name) for name in weights.names}, made.tensors)
        assert weights.metadata["ss_network_dim"] == "4" and weights.metadata["advunlearn.concept"] == "church"
    assert facts == {"file": str(out), "rank": 4, "layers": 24, "residual": made.residual} and 0 < made.residual < 1
    assert main(["info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"].startswith("a LoRA")


def test_a_pickled_checkpoint_can_be_patched_too(model: TextToImage, tmp_path: pathlib.Path) -> None:
    old = {"cond_stage_model.transformer." + k: v for k, v in encoder_of(model, torch.float16).items()}
    shared = REST | {"model_ema.copy": REST["alphas_cumprod"], "model_ema.part": REST["alphas_cumprod"][:10]}
    torch.save({"state_dict": old | shared, "epoch": 3}, tmp_path / "base.ckpt")
    state = encoder_of(model, torch.float32, 0.1)
    source, out = in_our_file(state, tmp_path), tmp_path / "out.safetensors"
    convert(str(source), out, "checkpoint", str(tmp_path / "base.ckpt"))
    assert is_same(read_encoder(out)[0], state) and is_same({k: load_file(out)[k] for k in shared}, shared)


def test_nothing_that_is_there_is_lost(model: TextToImage, tmp_path: pathlib.Path) -> None:
    source, out = in_our_file(encoder_of(model, torch.float32), tmp_path), tmp_path / "out.safetensors"
    out.write_text("precious")
    with pytest.raises(AdvUnlearnError, match="already exists; give another name, or --overwrite"):
        convert(str(source), out, "safetensors", MINIATURE)
    assert out.read_text() == "precious"
    convert(str(source), out, "safetensors", MINIATURE, overwrite=True)
    assert is_same(read_encoder(out)[0], read_encoder(source)[0])
    for overwrite in (False, True):
        with pytest.raises(AdvUnlearnError, match="is an input"):
            convert(str(source), source, "safetensors", MINIATURE, overwrite=overwrite)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "config.json").write_text("precious")
    with pytest.raises(AdvUnlearnError, match="config.json already exists"):
        convert(str(source), tmp_path / "to", "diffusers", MINIATURE)
    assert not (tmp_path / "to" / "model.safetensors").exists()


def test_info_tells_hash_dtype_recipe_and_the_differences_to_a_base(
    model: TextToImage, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import copy
    import hashlib

    encoder = copy.deepcopy(model.text_encoder)
    weights = dict(encoder.named_parameters())
    name = next(n for n in weights if n.endswith("layers.2.mlp.fc1.weight"))
    weights[name].data *= 1.5
    metadata = {"advunlearn.base_sha256": model.base_hash(), "advunlearn.scores": {"asr": 0.5}}
    path = save_encoder(tmp_path / "encoder.safetensors", encoder, metadata)
    assert main(["info", str(path), "--base", "miniature", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and facts["bytes"] == path.stat().st_size
    assert facts["dtype"] == {"float32": 68} and facts["metadata"]["scores"] == {"asr": 0.5}
    base, key = facts["base"], "text_model.encoder.layers.2.mlp.fc1.weight"
    assert base["changed"] == [key] and len(base["equal"]) == 67 and base["trained_from_it"] is True
    own = encoder_of(model, torch.float32)
    layer = torch.cat([v.flatten() for k, v in own.items() if "layers.2." in k]).norm()
    changes = base["relative_change"]
    assert changes["layer 2"] == pytest.approx((0.5 * own[key].norm() / layer).item(), rel=1e-4)
    assert [v for k, v in changes.items() if k != "layer 2"] == [0.0] * 6 and list(changes)[0] == "token_embedding"
    assert base["others"] is None
    assert main(["info", str(path), "--base", "miniature"]) == 0
    assert "67 of 68 tensors equal" in capsys.readouterr().out


def test_info_of_a_patched_checkpoint_counts_what_it_left_alone(model: TextToImage, tmp_path: pathlib.Path) -> None:
    from advunlearn.formats.inspect import inspect_file

    base = under("cond_stage_model.transformer.text_model.")(encoder_of(model, torch.float16), tmp_path)
    (tmp_path / "in").mkdir()
    source, out = in_our_file(encoder_of(model, torch.float32, 0.1), tmp_path / "in"), tmp_path / "out.safetensors"
    convert(str(source), out, "checkpoint", str(base))
    facts = inspect_file(str(out), str(base))
    assert facts["kind"].startswith("a Stable Diffusion 1.x checkpoint, epsilon prediction, with a CLIP text encoder")
    assert facts["base"]["others"] == {"equal": len(REST), "of": len(REST)}
    changed = load_file(out) | {"alphas_cumprod": torch.zeros(1000)}
    save_file(changed, out)
    assert inspect_file(str(out), str(base))["base"]["others"]["equal"] == len(REST) - 1
