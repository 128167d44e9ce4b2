"""Stable Diffusion XL's two text encoders: as diffusers has them, trained together and alone, written and read."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from tiny_models import tiny_sdxl
from torch import Tensor

from advunlearn.attacks.base import AttackContext, ReferenceModel
from advunlearn.attacks.prompt_slots import free_slots, interleaved_slots, prefix_slots
from advunlearn.attacks.single_prompt import attack_prompt
from advunlearn.cli.main import main
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.memory.estimate import estimate
from advunlearn.memory.fake_tensors import LiveMemory
from advunlearn.memory.plan import Plan
from advunlearn.models.ddim import ddim_sample
from advunlearn.models.encoder_files import load_encoder, save_encoders
from advunlearn.models.loading import TextToImage, choose_vae_dtype, load
from advunlearn.models.meta_model import skeleton
from advunlearn.models.sdxl_text_encoder import DualTextEncoder
from advunlearn.models.text_encoder import embedding_table, encode, trainable_parameters
from advunlearn.models.tokenizer import tokenize
from advunlearn.training.trainer import TrainResult, train

CPU = torch.device("cpu")
CONCEPT = ConceptConfig(concept="church")
ATTACK = AdversaryConfig(steps=2, tokens=2)
CONFIG = TrainConfig(iterations=3, warmup=1, batch=2, retain_batch=2, lr=1e-3)
BANK = BankConfig(trajectories=3, retain_trajectories=3, sampling_steps=3)
RETAINED = ["a photo of a dog", "a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def xl(folder: pathlib.Path) -> TextToImage:
    return load(str(folder))


@pytest.fixture(scope="module")
def pipeline(folder: pathlib.Path) -> Any:
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(model: TextToImage, **changes: Any) -> TrainResult:
    return train(
        model, RunConfig(concept=CONCEPT, attack=ATTACK, train=replace(CONFIG, **changes), bank=BANK), RETAINED
    )


def changed(model: TextToImage, result: TrainResult) -> set[str]:
    """Return the names of the tensors that a run changed."""
    before = model.text_encoder.state_dict()
    return {k for k, v in result.encoder.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize("prompt", ["a photo of a church", "", "dog " * 90])
def test_conditioning_is_that_of_diffusers(xl: TextToImage, pipeline: Any, prompt: str) -> None:
    hidden, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    ours = xl.encode([prompt])
    assert ours.shape == (1, 78, 80)
    # The two are loaded in different ways, so that weights may be aligned differently in memory: not bit for bit.
    assert torch.allclose(ours[:, :-1], hidden, atol=1e-5) and torch.allclose(ours[:, -1, :40], pooled, atol=1e-5)
    assert not ours[:, -1, 40:].any()


def test_a_picture_is_that_of_diffusers(xl: TextToImage, pipeline: Any) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        "a church",
        negative_prompt="",
        latents=noise,
        num_inference_steps=4,
        guidance_scale=3.0,
        height=64,
        width=64,
        output_type="latent",
    ).images
    ours = ddim_sample(xl.denoiser, xl.encode(["a church"]), xl.encode([""]), noise, 4, 3.0)
    assert torch.allclose(ours, theirs, atol=1e-5)
    wide = torch.cat([noise, noise], -1)  # the size in pixels is part of what the UNet is told
    assert xl.denoiser.time_ids(wide).tolist() == [[64, 128, 0, 0, 64, 128]]  # type: ignore[attr-defined]


def test_embeddings_put_in_place_say_what_their_tokens_say(xl: TextToImage) -> None:
    ids = tokenize(xl.tokenizer, ["a photo of a church", "a photo of a dog"])
    table = embedding_table(xl.text_encoder)
    assert table.shape == (49408, 80)
    whole, swapped = (encode(xl.text_encoder, row, table[ids[:1, 5:6]], slice(5, 6)) for row in (ids[:1], ids[1:]))
    assert torch.equal(whole, xl.encode(["a photo of a church"])) and torch.equal(swapped, whole)


def test_a_gradient_reaches_both_embeddings_by_every_way(xl: TextToImage) -> None:
    ids = tokenize(xl.tokenizer, ["a church"])
    rows = embedding_table(xl.text_encoder)[ids[:, 2:3]].clone().requires_grad_(True)

    def gradient(part: slice, width: slice) -> Tensor:
        (found,) = torch.autograd.grad(encode(xl.text_encoder, ids, rows, slice(2, 3))[:, part, width].sum(), rows)
        return found[0, 0]

    first, second, pooled = (
        gradient(slice(0, 77), slice(0, 32)),
        gradient(slice(0, 77), slice(32, 80)),
        gradient(slice(77, 78), slice(0, 40)),
    )
    assert first[:32].any() and not first[32:].any()
    for of_g in (second, pooled):
        assert of_g[32:].any() and not of_g[:32].any()


@pytest.mark.parametrize("which", ["both", "clip_l", "clip_g"])
def test_the_encoders_train_together_or_alone(xl: TextToImage, which: str) -> None:
    before = {k: v.clone() for k, v in xl.text_encoder.state_dict().items()}
    result = run(xl, encoders=which)
    names = changed(xl, result)
    assert {name.split(".")[0] for name in names} == ({"clip_l", "clip_g"} if which == "both" else {which})
    # Nothing depends on CLIP-L's last layer and norm; CLIP-G's are in its pooled output.
    assert not any("clip_l" in n and ("layers.2." in n or "final_layer_norm" in n) for n in names)
    assert which == "clip_l" or any("clip_g" in n and "layers.3." in n for n in names)
    assert not any("projection" in n and "text_projection" in n or "embedding" in n for n in names)
    assert "attack_end" in result.losses[-1] and result.losses[-1]["retain"] > 0
    assert all(torch.equal(v, before[k]) for k, v in xl.text_encoder.state_dict().items())
    assert changed(xl, run(xl, encoders=which)) == names


def test_layers_are_counted_in_both(xl: TextToImage) -> None:
    def named(**choice: Any) -> set[str]:
        chosen = {id(p) for p in trainable_parameters(xl.text_encoder, **choice)}
        return {name for name, p in xl.text_encoder.named_parameters() if id(p) in chosen}

    first = named(num_layers=1)
    assert {n.split("layers.")[1].split(".")[0] for n in first if "layers." in n} == {"0"}
    assert {n.split(".")[0] for n in first} == {"clip_l", "clip_g"}
    assert named(trainable="all", encoders="clip_l") > named(encoders="clip_l") and not any(
        "clip_g" in n for n in named(trainable="all", encoders="clip_l")
    )
    with pytest.raises(AdvUnlearnError, match="num_layers is 9, but this text encoder has 4"):
        named(num_layers=9)


@pytest.mark.parametrize("which", ["both", "clip_g"])
def test_what_trained_is_written_for_any_loader_and_read_again(
    xl: TextToImage, tmp_path: pathlib.Path, which: Any
) -> None:
    result = run(xl, encoders=which)
    files = save_encoders(tmp_path, result.encoder, which, {"advunlearn.concept": "church"})
    assert [f.name for f in files] == (["clip_l.safetensors"] if which == "both" else []) + ["clip_g.safetensors"]
    written = load_file(tmp_path / "clip_g.safetensors")
    assert all(k.startswith(("text_model.", "text_projection.")) for k in written)
    own = result.encoder.clip_g.state_dict()
    assert torch.equal(written["text_projection.weight"], own["text_projection.weight"])
    read, metadata = load_encoder(tmp_path, xl.text_encoder)
    assert isinstance(read, DualTextEncoder) and metadata["advunlearn.concept"] == "church"
    trained = result.encoder.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in read.state_dict().items())
    ids = tokenize(xl.tokenizer, ["a church"])
    assert torch.allclose(encode(read, ids), encode(result.encoder, ids), atol=1e-5)
    one, _ = load_encoder(tmp_path / "clip_g.safetensors", xl.text_encoder)
    for name, part in one.clip_l.state_dict().items():
        assert torch.equal(part, xl.text_encoder.clip_l.state_dict()[name])
    assert all(torch.equal(tensor, own[name]) for name, tensor in one.clip_g.state_dict().items())
    again = save_encoders(tmp_path, result.encoder, "clip_g", {})  # the other one would not belong to it
    assert again[0].exists() and not (tmp_path / "clip_l.safetensors").exists()


@pytest.mark.parametrize("name", ["unlearndiffatk", "soft_prefix", "p4d_k", "cce"])
def test_attacks_search_both_embeddings_at_once(xl: TextToImage, name: str) -> None:
    found = attack_prompt(
        AttackContext.for_prompt(
            xl.denoiser,
            xl.text_encoder,
            xl.tokenizer,
            "a church",
            torch.randn(1, 4, 8, 8),
            reference=ReferenceModel(xl.text_encoder, xl.denoiser),
            concept=CONCEPT,
        ),
        name,
        restarts=2,
        config=EvaluateConfig(attack_steps=2, attack_tokens=2),
    )
    assert found.embeddings.shape[-1] == 80 and found.conditioning.shape == (1, 78, 80)
    if found.exact:  # typed, it says what was found: CLIP-G's padding is its own
        assert torch.allclose(xl.encode([found.text]), found.conditioning, atol=1e-6)


@pytest.mark.parametrize("make", [prefix_slots, free_slots, interleaved_slots])
def test_tokens_in_places_say_what_their_text_says(xl: TextToImage, make: Any) -> None:
    prompts, tokens = ["a photo of a church"], tokenize(xl.tokenizer, ["cat dog"])[:, 1:3]
    asked = (
        (prompts, 2, xl.tokenizer, CPU)
        if make is interleaved_slots
        else (tokenize(xl.tokenizer, prompts), 2, xl.tokenizer)
    )
    slots = make(*asked)
    tokens = tokens[:, torch.arange(slots.at.shape[1]) % 2]
    said = slots.encode(xl.text_encoder, embedding_table(xl.text_encoder)[tokens])
    assert torch.equal(said, encode(xl.text_encoder, slots.fill(tokens)))


def test_what_cannot_be_is_refused(xl: TextToImage, model: TextToImage, folder: pathlib.Path) -> None:
    with pytest.raises(AdvUnlearnError, match="encoders is clip_g, but this model has one text encoder"):
        train(
            model,
            RunConfig(concept=CONCEPT, attack=ATTACK, train=replace(CONFIG, encoders="clip_g"), bank=BANK),
            RETAINED,
        )
    for name in ("ring_a_bell", "mma", "pez"):
        with pytest.raises(AdvUnlearnError, match=f"{name} lacks a model with one text encoder"):
            attack_prompt(
                AttackContext.for_prompt(
                    xl.denoiser,
                    xl.text_encoder,
                    xl.tokenizer,
                    "a church",
                    torch.randn(1, 4, 8, 8),
                    reference=ReferenceModel(xl.text_encoder, xl.denoiser),
                    concept=CONCEPT,
                ),
                name,
            )


def test_sdxls_autoencoder_alone_stays_in_fp32_where_fp16_overflows(xl: TextToImage, model: TextToImage) -> None:
    saying = AutoencoderKL(block_out_channels=(32,), force_upcast=True)  # as the configurations of SD 1.x do too
    assert choose_vae_dtype(saying, xl.text_encoder, torch.float16) == torch.float32
    assert choose_vae_dtype(saying, xl.text_encoder, torch.bfloat16) == torch.bfloat16
    assert choose_vae_dtype(saying, model.text_encoder, torch.float16) == torch.float16
    fixed = AutoencoderKL(block_out_channels=(32,), force_upcast=False)
    assert choose_vae_dtype(fixed, xl.text_encoder, torch.float16) == torch.float16
    assert skeleton("sdxl", CPU, torch.float16).vae.dtype == torch.float32


def test_the_command_trains_one_encoder_and_draws_with_it(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(folder), "--device", "cpu"]
    small = ["--bank-trajectories", "2", "--bank-retain-trajectories", "2", "--bank-sampling-steps", "2"]
    out = tmp_path / "run"
    assert (
        main(
            [
                "train",
                *common,
                *small,
                "--concept",
                "church",
                "--iterations",
                "2",
                "--warmup",
                "1",
                "--attack-steps",
                "1",
                "--encoders",
                "clip_g",
                "--sample-every",
                "0",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert (out / "clip_g.safetensors").is_file() and not (out / "clip_l.safetensors").exists()
    picture = tmp_path / "church.png"
    assert (
        main(["sample", *common, "a church", "--encoder", str(out), "--sampling-steps", "2", "--out", str(picture)])
        == 0
    )
    assert picture.stat().st_size > 1000
    capsys.readouterr()
    # Its base is CLIP-G before training, and nothing else.
    base = ["--base", str(folder / "text_encoder_2")]
    assert main(["info", str(out / "clip_g.safetensors"), *base, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["base"]["trained_from_it"] is True
    altered = load_file(out / "clip_g.safetensors")
    save_file(altered, out / "clip_g.safetensors", {"advunlearn.base_sha256": "0" * 64, "format": "pt"})
    assert main(["sample", *common, "a church", "--encoder", str(out), "--out", str(picture)]) == 2
    assert "which is not that of model" in capsys.readouterr().err
    whole = tmp_path / "whole.safetensors"
    save_file(altered | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)}, whole)
    assert main(["sample", *common, "a church", "--encoder", str(whole), "--out", str(picture)]) == 2
    assert "of which only CLIP-L could be read; give an SDXL checkpoint" in capsys.readouterr().err
    assert main(["train", *common, "--concept", "church", "--single-file", "--out", str(tmp_path / "other")]) == 2
    assert "only Stable Diffusion 1.x can be written as a single file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_takes_what_was_predicted(folder: pathlib.Path, xl: TextToImage) -> None:
    plan = Plan(
        run=RunConfig(concept=CONCEPT, attack=ATTACK, train=replace(CONFIG, warmup=0), bank=BANK), resolution=64
    )
    predicted = estimate(skeleton(str(folder), CPU, torch.float32), plan, RETAINED, CPU)
    with LiveMemory() as live:
        for part in (xl.text_encoder, xl.denoiser.unet, xl.vae):  # type: ignore[attr-defined]
            for tensor in (*part.parameters(), *part.buffers()):
                live.follow(tensor)
        train(xl, plan.run, RETAINED)
    assert predicted.peak == pytest.approx(max(live.peaks.values()), rel=0.05)


def test_the_shipped_shape_has_the_known_numbers() -> None:
    shape = skeleton("sdxl", CPU, torch.float16)
    encoder = shape.text_encoder
    parts = (shape.denoiser.unet, encoder.clip_l, encoder.clip_g, shape.vae)  # type: ignore[attr-defined]
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [2_567_463_684, 123_060_480, 694_659_840, 83_653_863]
    assert shape.denoiser.latent_shape == (4, 128, 128) and shape.denoiser.pooled == 1280  # type: ignore[attr-defined]
