"""SDXL's CLIP-G in every format: read out of SDXL checkpoints, put into them, and written as a folder and a LoRA."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from encoder_layouts import is_same
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from advunlearn import miniature
from advunlearn.cli.main import main
from advunlearn.errors import AdvUnlearnError
from advunlearn.formats.convert import convert
from advunlearn.formats.detect import PROJECTION, TEXT_PREFIX
from advunlearn.formats.inspect import format_facts, inspect_file
from advunlearn.formats.openclip import from_openclip, to_openclip
from advunlearn.formats.sdxl_encoders import CLIP_G_PREFIX
from advunlearn.formats.text_encoders import export_state, save_encoder
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.sdxl_text_encoder import DualTextEncoder

Tensors = dict[str, torch.Tensor]
CONFIG = {
    "vocab_size": 30,
    "hidden_size": 1280,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 20,
    "max_position_embeddings": 9,
    "projection_dim": 1280,
    "hidden_act": "gelu",
    "bos_token_id": 28,
    "eos_token_id": 29,
    "pad_token_id": 0,
}
CLIP_L = "conditioner.embedders.0.transformer."
UNET = "model.diffusion_model."


def clip_g(seed: int = 0) -> CLIPTextModelWithProjection:
    """Return a CLIP-G of its true width, with two layers and few words."""
    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(CLIPTextConfig(**CONFIG))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A checkpoint of SDXL's layout, in fp16, of which the UNet is what tells it."""
    torch.manual_seed(1)
    narrow = {"hidden_size": 32, "num_attention_heads": 4, "projection_dim": 32}
    first = export_state(CLIPTextModel(CLIPTextConfig(**CONFIG | narrow)))
    state = {CLIP_L + k: v for k, v in first.items() if k.startswith("text_model.")}
    state |= {CLIP_G_PREFIX + k: v for k, v in to_openclip(export_state(clip_g(2))).items()}
    state |= {
        CLIP_G_PREFIX + "logit_scale": torch.tensor(4.6),
        UNET + "input_blocks.0.0.weight": torch.randn(8, 4, 3, 3),
    }
    state[UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"] = torch.randn(2, 2048)
    path = tmp_path_factory.mktemp("base") / "xl.safetensors"
    save_file({k: v.half().contiguous() for k, v in state.items()}, path, {"format": "pt", "modelspec.title": "xl"})
    return path


@pytest.fixture
def trained(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run's file, with the configuration of its unusual shape beside it."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return save_encoder(tmp_path / "clip_g.safetensors", clip_g(), {"advunlearn.concept": "church"})


def test_names_and_layout_are_those_that_diffusers_reads(base: pathlib.Path) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    whole = load_file(base)
    inside = {k.removeprefix(CLIP_G_PREFIX): v for k, v in whole.items() if k.startswith(CLIP_G_PREFIX)}
    theirs = convert_open_clip_checkpoint(clip_g().half(), dict(whole), prefix=CLIP_G_PREFIX)
    ours = from_openclip(inside)
    assert {k.removeprefix("text_model.") for k in theirs} == {k.removeprefix("text_model.") for k in ours}
    plain = {k.removeprefix("text_model."): v for k, v in ours.items()}
    assert all(torch.equal(v, plain[k.removeprefix("text_model.")]) for k, v in theirs.items())
    assert is_same(to_openclip(ours), {k: v for k, v in inside.items() if k != "logit_scale"})


def test_it_is_read_out_of_a_checkpoint_and_put_back_bit_for_bit(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    alone, again = tmp_path / "g.safetensors", tmp_path / "again.safetensors"
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    flags = ["--to", "safetensors", "--base", str(tmp_path / "g.safetensors")]
    save_encoder(alone, clip_g(), {})
    assert main(["convert", str(base), str(again), "--part", "clip_g", *flags]) == 0
    assert is_same(load_file(again), {k: v.half() for k, v in export_state(clip_g(2)).items()})
    assert convert(str(again), tmp_path / "xl.safetensors", "checkpoint", str(base)).facts["replaced"] == 29
    assert is_same(load_file(tmp_path / "xl.safetensors"), load_file(base))


def test_a_patched_checkpoint_has_the_trained_one_and_all_else_as_it_was(
    base: pathlib.Path, trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "patched.safetensors"
    convert(str(trained), out, "checkpoint", str(base))
    before, after = load_file(base), load_file(out)
    new = {CLIP_G_PREFIX + k: v for k, v in to_openclip(export_state(clip_g())).items()}
    assert is_same({k: after[k] for k in new}, new) and before.keys() == after.keys()
    rest = before.keys() - new.keys()
    assert CLIP_G_PREFIX + "logit_scale" in rest and is_same({k: after[k] for k in rest}, {k: before[k] for k in rest})


def test_info_tells_both_encoders_and_compares_each(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    its_base = inspect_file(str(base))["second_encoder"]["encoder_sha256"]
    trained = save_encoder(tmp_path / "clip_g.safetensors", clip_g(), {"advunlearn.base_sha256": its_base})
    out = tmp_path / "patched.safetensors"
    convert(str(trained), out, "checkpoint", str(base))
    facts = inspect_file(str(out), str(base))
    assert facts["kind"].endswith("; and SDXL's CLIP-G (OpenCLIP ViT-bigG), 1280 wide, in OpenCLIP's layout")
    assert (facts["width"], facts["second_encoder"]["width"], facts["second_encoder"]["layers"]) == (32, 1280, 2)
    assert facts["second_encoder"]["encoder_sha256"] == inspect_file(str(trained))["encoder_sha256"]
    first, second = facts["base"], facts["base"]["second_encoder"]
    assert first["total"] == 0 and not first["changed"] and first["trained_from_it"] is True
    assert inspect_file(str(base), str(out))["base"]["trained_from_it"] is None
    assert inspect_file(str(out), str(out))["base"]["trained_from_it"] is False
    assert second["total"] > 0.1 and TEXT_PREFIX + "encoder.layers.1.mlp.fc2.weight" in second["changed"]
    assert first["others"] == {"equal": 2, "of": 2}  # the UNet's
    equal, both = len(second["equal"]), len(second["equal"] + second["changed"])
    assert both == 37 and f"second encoder: {equal} of {both} tensors equal, relative change " in format_facts(facts)


def test_info_compares_clip_g_alone_with_that_of_a_checkpoint(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    alone = save_encoder(tmp_path / "clip_g.safetensors", clip_g(2).half(), {})
    same_as_its = inspect_file(str(alone), str(base))["base"]
    assert not same_as_its["changed"] and same_as_its["total"] == 0 and PROJECTION in same_as_its["equal"]
    tensors = load_file(base)
    del tensors[CLIP_G_PREFIX + "text_projection"]
    save_file(tensors, tmp_path / "bare.safetensors")
    assert PROJECTION not in inspect_file(str(alone), str(tmp_path / "bare.safetensors"))["base"]["equal"]
    with pytest.raises(AdvUnlearnError, match="they have nothing in common"):
        inspect_file(str(alone), str(miniature.path()))


def test_a_folder_loads_in_transformers_with_its_projection(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    convert(str(trained), tmp_path / "folder", "diffusers")
    loaded, info = CLIPTextModelWithProjection.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.architectures == ["CLIPTextModelWithProjection"]
    assert is_same(dict(loaded.state_dict()), dict(clip_g().state_dict()))


@pytest.mark.slow
def test_a_lora_has_kohyas_names_of_its_encoder(
    base: pathlib.Path, trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    done = convert(str(trained), tmp_path / "lora.safetensors", "lora", str(base), rank=2)
    made = load_file(tmp_path / "lora.safetensors")
    assert done.facts["layers"] == 12 and all(k.startswith("lora_te2_text_model_encoder_layers_") for k in made)
    first = {k.removeprefix(CLIP_L): v.float() + 1 for k, v in load_file(base).items() if k.startswith(CLIP_L)}
    save_file(first, tmp_path / "clip_l.safetensors")
    convert(str(tmp_path / "clip_l.safetensors"), tmp_path / "first.safetensors", "lora", str(base), rank=2)
    assert all(k.startswith("lora_te1_text_model_encoder_layers_") for k in load_file(tmp_path / "first.safetensors"))
    # A diffusers folder as the base.
    read = {k.removeprefix(CLIP_L): v for k, v in load_file(base).items() if k.startswith(CLIP_L)}
    for part, state in (("text_encoder", read), ("text_encoder_2", export_state(clip_g(2)))):
        (tmp_path / "xl" / part).mkdir(parents=True)
        save_file(state, tmp_path / "xl" / part / "model.safetensors")
    for name, start in (("clip_l", "lora_te1_"), ("clip_g", "lora_te2_")):
        convert(str(tmp_path / f"{name}.safetensors"), tmp_path / f"{start}.safetensors", "lora", str(tmp_path / "xl"))
        assert all(k.startswith(start) for k in load_file(tmp_path / f"{start}.safetensors"))
    with pytest.raises(AdvUnlearnError, match="no linear layer differs"):
        convert(str(trained), tmp_path / "none.safetensors", "lora", str(trained))


def test_what_is_no_clip_g_is_refused(base: pathlib.Path, trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = {k: v for k, v in load_file(base).items() if not k.startswith(CLIP_G_PREFIX)}
    save_file(other, tmp_path / "other.safetensors")
    for source, flags, says in (
        (trained, {"kind": "checkpoint", "base": str(tmp_path / "other.safetensors")}, "has no CLIP-G"),
        (tmp_path / "other.safetensors", {"kind": "safetensors", "part": "clip_g"}, "holds no CLIP-G; give"),
    ):
        with pytest.raises(AdvUnlearnError, match=says):
            convert(str(source), tmp_path / "out.safetensors", **flags)  # type: ignore[arg-type]


def test_both_encoders_are_loaded_out_of_a_whole_checkpoint(base: pathlib.Path) -> None:
    narrow = {"hidden_size": 32, "num_attention_heads": 4, "projection_dim": 32}
    own = DualTextEncoder(CLIPTextModel(CLIPTextConfig(**CONFIG | narrow)), clip_g(7))
    before = {name: value.clone() for name, value in own.state_dict().items()}
    loaded, metadata = load_encoder(base, own)
    assert metadata["modelspec.title"] == "xl" and is_same(own.state_dict(), before)
    there = load_file(base)
    first, second = ({k: v.half() for k, v in export_state(e).items()} for e in loaded.parts().values())
    second = {CLIP_G_PREFIX + k: v for k, v in to_openclip(second).items()}
    first = {CLIP_L + k: v for k, v in first.items() if k.startswith("text_model.")}
    assert is_same(first | second, {k: v for k, v in there.items() if k in first or k in second})
    assert not is_same(first, {CLIP_L + k: v.half() for k, v in export_state(own.clip_l).items()})
