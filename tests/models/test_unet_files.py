"""A trained UNet on disk: diffusers' own loader and converters read it, and every round trip is bit-exact."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from advunlearn import miniature
from advunlearn.errors import AdvUnlearnError
from advunlearn.files import UNET_WEIGHTS
from advunlearn.formats.inspect import format_facts, get_layer_group, inspect_file
from advunlearn.formats.ldm_keys import UNET_PREFIX, build_checkpoint_state, map_unet_keys, map_vae_keys
from advunlearn.models.loading import TextToImage
from advunlearn.models.meta_model import skeleton
from advunlearn.models.unet_files import load_unet, save_checkpoint, save_unet

Weights = Mapping[str, torch.Tensor]


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def trained_unet(model: TextToImage) -> torch.nn.Module:
    """Return the miniature's UNet with every weight changed, each in its own way."""
    unet = model.denoiser.trainable_copy().unet  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 1e-3
    return unet


def numbered(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a state dict whose tensors have a module's dimensions but one value: their number."""
    return {k: torch.full([1] * v.dim(), float(i)) for i, (k, v) in enumerate(module.state_dict().items())}


def test_every_weight_of_sd15_gets_the_name_that_diffusers_converts_from() -> None:
    model = skeleton("sd15", torch.device("cpu"), torch.float32)
    unet, vae = model.denoiser.unet, model.vae  # type: ignore[attr-defined]
    text = {"text_model." + k.removeprefix("text_model."): v for k, v in numbered(model.text_encoder).items()}
    state = build_checkpoint_state(numbered(unet), text, numbered(vae), 0.18215)
    assert len(state) == len(unet.state_dict()) + len(text) + len(vae.state_dict())
    assert same(convert_ldm_unet_checkpoint(state, unet.config), numbered(unet))
    assert same(convert_ldm_vae_checkpoint(state, vae.config), numbered(vae))
    assert same(convert_ldm_clip_checkpoint(state), text)
    # Names that other loaders look for, from the published checkpoint's listing.
    assert {
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.input_blocks.9.0.op.bias",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight",
        "first_stage_model.quant_conv.bias",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    } <= state.keys()
    assert state["first_stage_model.decoder.mid.attn_1.q.weight"].dim() == 4  # a convolution there


def test_names_are_not_guessed() -> None:
    with pytest.raises(AdvUnlearnError, match="'encoder_hid_proj.weight' has no name in the original layout"):
        map_unet_keys(["conv_in.weight", "encoder_hid_proj.weight"])
    assert map_vae_keys(["decoder.layers.0.weight"]) == {"decoder.layers.0.weight": "taesd_decoder.1.weight"}


def test_a_folder_is_diffusers_own_and_comes_back_bit_for_bit(model: TextToImage, tmp_path: pathlib.Path) -> None:
    unet = trained_unet(model)
    save_unet(tmp_path / "unet", unet, {"advunlearn.recipe": {"lr": 1e-5}})
    for folder in (tmp_path, tmp_path / "unet"):
        found, metadata = load_unet(folder, model.denoiser)  # type: ignore[arg-type]
        assert same(found.unet.state_dict(), unet.state_dict()) and metadata["advunlearn.recipe"] == '{"lr": 1e-05}'
    assert not same(model.denoiser.unet.state_dict(), unet.state_dict())  # type: ignore[attr-defined]
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert same(theirs.state_dict(), unet.state_dict()) and theirs.config.block_out_channels == [64, 128]
    theirs.save_pretrained(tmp_path / "theirs", safe_serialization=False)  # a pickle
    found, _ = load_unet(tmp_path / "theirs", model.denoiser)  # type: ignore[arg-type]
    assert same(found.unet.state_dict(), unet.state_dict())


def test_info_compares_a_unet_with_that_of_its_model(model: TextToImage, tmp_path: pathlib.Path) -> None:
    unet = model.denoiser.trainable_copy().unet  # type: ignore[attr-defined]
    with torch.no_grad():
        unet.down_blocks[1].resnets[0].conv1.weight *= 1.5
    facts = inspect_file(str(save_unet(tmp_path / "unet", unet, {})), str(miniature.path()))
    assert facts["kind"] == "a diffusers UNet" and facts["dtype"] == {"float32": len(unet.state_dict())}
    base = facts["base"]
    assert base["changed"] == ["down_blocks.1.resnets.0.conv1.weight"]
    assert [part for part, change in base["relative_change"].items() if change] == ["down_blocks.1"]
    block = torch.cat([v.flatten() for v in model.denoiser.unet.down_blocks[1].parameters()])  # type: ignore[attr-defined]
    one = model.denoiser.unet.down_blocks[1].resnets[0].conv1.weight  # type: ignore[attr-defined]
    assert base["relative_change"]["down_blocks.1"] == pytest.approx((0.5 * one.norm() / block.norm()).item(), rel=1e-4)
    save_file({"down_blocks.0.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(AdvUnlearnError, match="lacks 286 of 286 tensors"):
        inspect_file(str(tmp_path / "other.safetensors"), str(miniature.path()))
    encoder = str(miniature.path() / "text_encoder" / "model.safetensors")
    with pytest.raises(AdvUnlearnError, match="is a diffusers UNet, and .* is a CLIP text encoder: .* in common"):
        inspect_file(str(tmp_path / "unet"), encoder)


def test_info_of_a_run_that_trained_a_unet_tells_it(model: TextToImage, tmp_path: pathlib.Path) -> None:
    unet = model.denoiser.unet  # type: ignore[attr-defined]
    unet.save_pretrained(tmp_path / "run" / "unet", safe_serialization=False)  # a pickle
    facts = inspect_file(str(tmp_path / "run"), str(miniature.path()))
    assert facts["kind"] == "a diffusers UNet" and not facts["base"]["changed"]
    assert "286 of 286 tensors equal" in format_facts(facts)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("encoder.down_blocks.0.resnets.0.conv1.weight", "a diffusers autoencoder"),
        ("controlnet_down_blocks.0.weight", "a ControlNet"),
        ("down_blocks.0.motion_modules.0.norm.weight", "a motion module"),
    ],
)
def test_what_is_like_a_unet_is_told_from_one(name: str, kind: str, tmp_path: pathlib.Path) -> None:
    save_file({name: torch.ones(2), "conv_in.weight": torch.ones(2)}, tmp_path / UNET_WEIGHTS[0])
    assert inspect_file(str(tmp_path))["kind"] == kind
    with pytest.raises(AdvUnlearnError, match=f"is {kind}; only text encoders and UNets can be"):
        inspect_file(str(tmp_path), str(miniature.path()))


def test_parts_of_a_unet_have_the_blocks_names() -> None:
    names = ("down_blocks.0.resnets.0.conv1.weight", "add_embedding.linear_1.bias", "conv_in.weight", "x")
    assert [get_layer_group(name) for name in names] == ["down_blocks.0", "add_embedding", "conv_in", "x"]


def test_a_checkpoint_has_the_whole_model_and_comes_back_bit_for_bit(
    model: TextToImage, tmp_path: pathlib.Path
) -> None:
    unet = trained_unet(model)
    denoiser = model.denoiser.with_modules(lambda _: unet)
    path = save_checkpoint(tmp_path / "all.safetensors", model, model.text_encoder, denoiser, {})  # type: ignore[arg-type]
    state = load_file(path)
    assert same(convert_ldm_unet_checkpoint(state, unet.config), unet.state_dict())
    text = {k.removeprefix("text_model."): v for k, v in convert_ldm_clip_checkpoint(state).items()}
    own = {k.removeprefix("text_model."): v for k, v in model.text_encoder.state_dict().items()}
    assert same(text, {k: v for k, v in own.items() if not k.endswith("position_ids")})
    assert all(
        torch.equal(state["first_stage_model." + k], model.vae.state_dict()[n])
        for n, k in map_vae_keys(model.vae.state_dict()).items()
    )
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "epsilon"
        assert file.metadata()["modelspec.resolution"] == "64x64" and "ztsnr" not in state
    found, _ = load_unet(path, model.denoiser)  # type: ignore[arg-type]
    assert same(found.unet.state_dict(), unet.state_dict())
    bare = {k.removeprefix(UNET_PREFIX): v for k, v in state.items() if k.startswith(UNET_PREFIX)}
    save_file(bare, tmp_path / "bare.safetensors")
    found, _ = load_unet(tmp_path / "bare.safetensors", model.denoiser)  # type: ignore[arg-type]
    assert same(found.unet.state_dict(), unet.state_dict())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("missing", "lacks 1 of a UNet's 286 tensors, first 'conv_out.bias'"),
        ("unknown", "has 1 more than a UNet's 286 tensors, first 'add_embedding.weight'"),
        ("shape", r"has 'conv_out.bias' in shape \(3,\) and not \(4,\)"),
        ("encoder", "contains no UNet: its first tensor is 'text_model"),
        ("nothing", "holds none of diffusion_pytorch_model.safetensors"),
        ("nowhere", "no such file; give a diffusers UNet's folder"),
    ],
)
def test_refusals_say_what_is_wrong(model: TextToImage, tmp_path: pathlib.Path, damage: str, says: str) -> None:
    state, path = dict(model.denoiser.unet.state_dict()), tmp_path / "bad.safetensors"  # type: ignore[attr-defined]
    if damage == "missing":
        del state["conv_out.bias"]
    elif damage == "encoder":
        state = {"text_model.final_layer_norm.bias": torch.zeros(1)}
    elif damage in ("nothing", "nowhere"):
        path = tmp_path / ("" if damage == "nothing" else damage)
    else:
        state["add_embedding.weight" if damage == "unknown" else "conv_out.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(AdvUnlearnError, match=says):
        load_unet(path, model.denoiser)  # type: ignore[arg-type]
