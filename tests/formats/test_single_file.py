"""Checkpoints in one file: the widened miniature, the true shapes of Stable Diffusion 1.5, a small one as .ckpt."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import ldm_layout
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.formats import single_file
from advunlearn.formats.encoder_config import compute_encoder_shapes
from advunlearn.formats.weights import Weights
from advunlearn.miniature import checkpoint
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.meta_model import skeleton
from advunlearn.models.unet_files import save_checkpoint
from advunlearn.training.trainer import train

PROMPTS = ["a photo of a church, ink style", "un voilier"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextToImage]:
    """The widened miniature, written to one file and read again."""
    file = checkpoint.write_checkpoint(tmp_path_factory.mktemp("wide") / "miniature.safetensors")
    yield load(str(file))
    file.unlink()  # 490 MB


def test_the_widened_miniature_is_the_miniature(model: TextToImage, wide: TextToImage) -> None:
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([400, 700])
    pictures = torch.rand(2, 3, 64, 64, generator=generator)
    context, narrow = wide.encode(PROMPTS), model.encode(PROMPTS)
    assert (context - narrow.repeat_interleave(4, -1)).abs().max() < 1e-4
    with torch.no_grad():
        # The file is in fp16, and its UNet's weights are the miniature's divided by five.
        noise, other = wide.denoiser.noise_pred(x, t, context), model.denoiser.noise_pred(x, t, narrow)
        assert (noise - other).abs().max() < 2e-3
        assert (wide.vae.encode(pictures).latents - model.vae.encode(pictures).latents).abs().max() < 1e-4
    assert (wide.decode(x) - model.decode(x)).abs().max() < 1e-4
    assert wide.denoiser.latent_shape == (4, 8, 8)  # of the file's modelspec.resolution
    assert torch.equal(wide.denoiser.alphas_cumprod, model.denoiser.alphas_cumprod)


def test_it_trains_and_can_be_estimated(wide: TextToImage) -> None:
    shape = skeleton(wide.name, torch.device("cpu"), torch.float32)
    for part, own in (("text_encoder", shape.text_encoder), ("vae", shape.vae)):
        there = getattr(wide, part).state_dict()
        assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in there.items()}
    assert shape.denoiser.latent_shape == (4, 8, 8)
    config = TrainConfig(iterations=1, warmup=0, num_layers=1, batch=1, retain_batch=1)
    bank = BankConfig(trajectories=1, retain_trajectories=1, sampling_steps=2)
    attack, prompts = AdversaryConfig(steps=1, restarts=1), ["a photo of a castle"]
    result = train(
        wide, RunConfig(concept=ConceptConfig(concept="church"), attack=attack, train=config, bank=bank), prompts
    )
    assert result.iterations == 1 and torch.isfinite(torch.tensor(result.losses[0]["loss"]))
    name = "encoder.layers.0.mlp.fc1.weight"
    new, old = (dict(e.named_parameters()) for e in (result.encoder, wide.text_encoder))
    assert [k for k in new if k.endswith(name) and not torch.equal(new[k], old[k])]


def sd15_on_meta() -> dict[str, torch.Tensor]:
    """Stable Diffusion 1.5's checkpoint: names and shapes."""
    parts = {part: single_file.load_sd15_config(part) for part in ("unet", "vae", "text_encoder")}
    unet, vae = single_file.build_meta_modules(parts)
    text = {k: torch.empty(v, device="meta") for k, v in compute_encoder_shapes(parts["text_encoder"]).items()}
    return ldm_layout.checkpoint(unet.state_dict(), 2, vae.state_dict(), 4, text)


def test_true_shapes_are_taken_for_stable_diffusion_15() -> None:
    state = sd15_on_meta()
    assert len(state) == 686 + 248 + 196
    assert state["model.diffusion_model.output_blocks.2.1.conv.weight"].shape == (1280, 1280, 3, 3)
    assert state["model.diffusion_model.output_blocks.5.2.conv.weight"].shape == (1280, 1280, 3, 3)
    assert state["model.diffusion_model.input_blocks.7.1.proj_in.weight"].shape == (1280, 1280, 1, 1)
    assert state["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    assert state["first_stage_model.decoder.up.1.upsample.conv.weight"].shape == (256, 256, 3, 3)
    weights = Weights.from_tensors(state, "sd15")
    configs = single_file.infer_configs(weights)
    for part in ("unet", "vae", "text_encoder"):
        assert configs[part] == single_file.load_sd15_config(part)
    single_file.read_states(weights, configs)  # every tensor has its place and its shape
    del state["model.diffusion_model.middle_block.1.norm.bias"]
    with pytest.raises(AdvUnlearnError, match="lacks 1 of [0-9]+ tensors, first 'mid_block.attentions.0.norm.bias'"):
        single_file.read_states(Weights.from_tensors(state, "sd15"), configs)


@pytest.fixture(scope="module")
def small() -> tuple[UNet2DConditionModel, AutoencoderKL, dict[str, torch.Tensor]]:
    """A UNet and an AutoencoderKL of SD 1.5's layout with few channels, and their checkpoint."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(
        single_file.load_sd15_config("unet") | {"block_out_channels": [32, 32, 64, 64]}
    )
    vae = AutoencoderKL.from_config(single_file.load_sd15_config("vae") | {"block_out_channels": [32, 32, 64, 64]})
    text = {
        k: torch.zeros(v, dtype=torch.float16)
        for k, v in compute_encoder_shapes(single_file.load_sd15_config("text_encoder")).items()
    }
    text["text_model.final_layer_norm.bias"] += 0.5
    return unet, vae, ldm_layout.checkpoint(unet.state_dict(), 2, vae.state_dict(), 4, text)


def assert_same_weights(module: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Assert that two modules have the same weights bit for bit."""
    state = module.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.state_dict().items())


def test_a_ckpt_with_an_autoencoder_kl_that_predicts_v(
    small: tuple[UNet2DConditionModel, AutoencoderKL, dict[str, torch.Tensor]], tmp_path: pathlib.Path
) -> None:
    unet, vae, state = small
    more = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([]), "model_ema.decay": torch.tensor(0.9)}
    torch.save({"state_dict": state | more, "global_step": 7}, tmp_path / "small.ckpt")
    loaded = load(str(tmp_path / "small.ckpt"))
    (tmp_path / "small.ckpt").unlink()
    assert_same_weights(loaded.denoiser.unet, unet)  # type: ignore[attr-defined]
    assert_same_weights(loaded.vae, vae)
    assert torch.equal(loaded.encode(["a dog"]), torch.full((1, 77, 768), 0.5))
    assert loaded.vae.config.scaling_factor == 0.18215 and loaded.denoiser.latent_shape == (4, 64, 64)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([600]), torch.zeros(1, 77, 768)
    alphas = loaded.denoiser.alphas_cumprod
    assert alphas[-1] < 1e-6  # zero terminal SNR
    with torch.no_grad():
        v = unet.eval()(x, t, context).sample
        noise = loaded.denoiser.noise_pred(x, t, context)
    assert torch.allclose(noise, alphas[600].sqrt() * v + (1 - alphas[600]).sqrt() * x, atol=1e-5)
    # Written as one file, of another size, it is read as what it was.
    loaded.denoiser.latent_shape = (4, 32, 48)
    written = save_checkpoint(tmp_path / "b.safetensors", loaded, loaded.text_encoder, loaded.denoiser, {})  # type: ignore[arg-type]
    again = load(str(written))
    assert again.denoiser.latent_shape == (4, 32, 48) and torch.equal(again.denoiser.alphas_cumprod, alphas)
    assert_same_weights(again.denoiser.unet, unet)  # type: ignore[attr-defined]
    assert_same_weights(again.vae, vae)
    with torch.no_grad():
        # Weights that safetensors maps lie unaligned in memory, for which matrix products differ in the last bits on
        # some processors.
        assert torch.allclose(again.denoiser.noise_pred(x, t, context), noise, atol=1e-5)
    loaded.denoiser.alphas_cumprod = alphas.square()
    with pytest.raises(AdvUnlearnError, match="this model has another one; leave --single-file out"):
        save_checkpoint(tmp_path / "c.safetensors", loaded, loaded.text_encoder, loaded.denoiser, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "metadata", "wanted", "found"),
    [
        ("", {}, "auto", "epsilon"),
        ("v_pred", {}, "auto", "v_prediction"),
        ("", {"modelspec.prediction_type": "v"}, "auto", "v_prediction"),
        ("", {"modelspec.predict_key": "v"}, "auto", "v_prediction"),
        ("", {"modelspec.prediction_type": "epsilon"}, "auto", "epsilon"),
        ("v_pred", {}, "epsilon", "epsilon"),
        ("", {}, "v_prediction", "v_prediction"),
    ],
)
def test_what_it_predicts_is_read_from_the_file_unless_one_says_so(
    key: str, metadata: dict[str, str], wanted: str, found: str
) -> None:
    state = sd15_on_meta() | ({key: torch.tensor([])} if key else {})
    assert (
        single_file.infer_configs(Weights.from_tensors(state, "file", metadata), wanted)["scheduler"]["prediction_type"]
        == found
    )


def test_a_folders_prediction_type_can_be_said_too(model: TextToImage) -> None:
    other = load("miniature", prediction_type="v_prediction")
    assert other.denoiser.prediction_type == "v_prediction" and model.denoiser.prediction_type == "epsilon"  # type: ignore[attr-defined]
    assert other.fingerprints() != model.fingerprints()  # a run does not go on with the other meaning
