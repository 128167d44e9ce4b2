"""SDXL in one file: the true shapes of SDXL and the models distilled from it, and a small one that is read and run."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import ldm_layout
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from advunlearn.errors import AdvUnlearnError
from advunlearn.formats import encoder_config, single_file
from advunlearn.formats.weights import Weights
from advunlearn.models.loading import TextToImage, find_model, load
from advunlearn.models.meta_model import skeleton
from advunlearn.models.sdxl_text_encoder import DualTextEncoder

Tensors = dict[str, torch.Tensor]
# UNets with SDXL's conditioning that the authors of other layouts published, by what differs from SDXL's configuration.
LAYOUTS: dict[str, dict[str, Any]] = {
    "sdxl": {},
    "ssd-1b": {
        "transformer_layers_per_block": [[0, 0], [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], [0, 0, 0]],
        "mid_block_type": "UNetMidBlock2D",
    },
    "vega": {
        "transformer_layers_per_block": [[0, 0], [1, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], [0, 0, 0]],
        "mid_block_type": None,
    },
    "koala-700m": {"transformer_layers_per_block": [1, 2, 5], "layers_per_block": 1, "mid_block_type": None},
}


def sdxl_on_meta(changes: dict[str, Any]) -> tuple[Tensors, UNet2DConditionModel]:
    """Return the names and shapes of a checkpoint with SDXL's encoders, and its UNet."""
    config = single_file.load_config("sdxl", "unet") | changes
    unet, vae = single_file.build_meta_modules({"unet": config, "vae": single_file.load_config("sdxl", "vae")})
    first, second = (CLIPTextConfig(**single_file.load_config("sdxl", f"text_encoder{n}")) for n in ("", "_2"))
    with torch.device("meta"):
        text, more = CLIPTextModel(first).state_dict(), CLIPTextModelWithProjection(second).state_dict()
    texts = [prefixed(state) for state in (text, more)]
    return ldm_layout.sdxl_checkpoint(unet.state_dict(), config["layers_per_block"], vae.state_dict(), 4, *texts), unet  # type: ignore[return-value]


def prefixed(state: Tensors) -> Tensors:
    """Return an encoder's tensors under `text_model.` keys, whatever the version of transformers."""
    bare = {k.removeprefix("text_model."): v for k, v in state.items() if not k.endswith("position_ids")}
    return {k if k.startswith("text_projection") else f"text_model.{k}": v for k, v in bare.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_true_shapes_are_read_as_what_they_are(layout: str) -> None:
    state, unet = sdxl_on_meta(LAYOUTS[layout])
    weights = Weights.from_tensors(state, layout)
    configs = single_file.infer_configs(weights)
    if layout == "sdxl":
        assert all(configs[part] == single_file.load_config("sdxl", part) for part in ("unet", "vae", "text_encoder_2"))
    states = single_file.read_states(weights, configs)  # every tensor has its place and its shape
    assert {k: v.shape for k, v in states["unet"].items()} == {k: v.shape for k, v in unet.state_dict().items()}
    assert len(states["text_encoder_2"]) == 32 * 16 + 5
    del state["model.diffusion_model.label_emb.0.0.bias"]
    with pytest.raises(AdvUnlearnError, match="its UNet"):
        single_file.read_states(Weights.from_tensors(state, layout), configs)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.nn.Module], Tensors]:
    """Modules of SDXL's layout, with few channels and layers, and their checkpoint."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(
        single_file.load_config("sdxl", "unet")
        | {"block_out_channels": [64, 64, 128], "attention_head_dim": [1, 1, 2]}
        | {"transformer_layers_per_block": [1, 2, 3]}
    )
    vae = AutoencoderKL.from_config(single_file.load_config("sdxl", "vae") | {"block_out_channels": [32, 32, 32, 32]})
    first, second = (CLIPTextConfig(**small_config(f"text_encoder{n}")) for n in ("", "_2"))
    modules = {
        "unet": unet,
        "vae": vae,
        "text_encoder": CLIPTextModel(first),
        "text_encoder_2": CLIPTextModelWithProjection(second),
    }
    texts = [prefixed(modules[name].state_dict()) for name in ("text_encoder", "text_encoder_2")]
    return modules, ldm_layout.sdxl_checkpoint(unet.state_dict(), 2, vae.state_dict(), 4, *texts)


def small_config(part: str) -> dict[str, Any]:
    return single_file.load_config("sdxl", part) | {"num_hidden_layers": 2, "intermediate_size": 64}


@pytest.fixture
def small_encoders(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the shipped configurations of SDXL's encoders be those of the small ones."""
    folder = tmp_path / "shapes"
    shutil.copytree(encoder_config.SHAPES_FOLDER, folder)
    for part in ("text_encoder", "text_encoder_2"):
        (folder / "sdxl" / part / "config.json").write_text(json.dumps(small_config(part)))
    monkeypatch.setattr(single_file, "SHAPES_FOLDER", folder)


def assert_same_weights(module: torch.nn.Module, expected: torch.nn.Module) -> None:
    state = module.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.state_dict().items())


@pytest.mark.slow
@pytest.mark.usefixtures("small_encoders")
def test_a_file_that_predicts_v_with_zero_terminal_snr(
    small: tuple[dict[str, torch.nn.Module], Tensors], tmp_path: pathlib.Path
) -> None:
    modules, state = small
    flags = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}  # as NoobAI's
    torch.save(state | flags, tmp_path / "noob.CKPT")
    assert find_model(str(tmp_path / "noob.CKPT")).name == "noob.CKPT"
    loaded = load(str(tmp_path / "noob.CKPT"))
    encoder = loaded.text_encoder
    assert isinstance(encoder, DualTextEncoder) and encoder.padding == 0
    for part, name in ((encoder.clip_l, "text_encoder"), (encoder.clip_g, "text_encoder_2")):
        assert_same_weights(part, modules[name])
    assert_same_weights(loaded.denoiser.unet, modules["unet"])  # type: ignore[attr-defined]
    assert_same_weights(loaded.vae, modules["vae"])
    assert loaded.vae.config.scaling_factor == 0.13025 and loaded.denoiser.latent_shape == (4, 128, 128)
    assert_it_predicts_as_its_unet(loaded, modules["unet"].eval())
    shape = skeleton(loaded.name, torch.device("cpu"), torch.float16)
    assert {k: v.shape for k, v in shape.text_encoder.state_dict().items()} == {
        k: v.shape for k, v in encoder.state_dict().items()
    }


def assert_it_predicts_as_its_unet(loaded: TextToImage, unet: torch.nn.Module) -> None:
    """Assert eps = sqrt(a) v + sqrt(1 - a) x, with SDXL's size conditioning of 64 pixels."""
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([600])
    context = loaded.encode(["a dog"])
    a = loaded.denoiser.alphas_cumprod[600]
    assert loaded.denoiser.alphas_cumprod[-1] < 1e-6
    added = {"text_embeds": context[:, -1, :1280], "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    with torch.no_grad():
        v = unet(x, t, context[:, :-1], added_cond_kwargs=added).sample
        noise = loaded.denoiser.noise_pred(x, t, context)
    assert torch.allclose(noise, a.sqrt() * v + (1 - a).sqrt() * x, atol=1e-5)


def test_endings_are_read_in_any_case(tmp_path: pathlib.Path) -> None:
    for name in ("a.safetensors", "a.sft", "a.SFT", "a.Safetensors", "a.CKPT"):
        (tmp_path / name).touch()
        assert find_model(str(tmp_path / name)) == tmp_path / name
    (tmp_path / "a.txt").touch()
    with pytest.raises(AdvUnlearnError, match=".sft"):
        find_model(str(tmp_path / "a.txt"))
