"""Exactly which tensors a run moves, for every choice of what trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.formats.ldm_keys import map_unet_keys
from advunlearn.models.diffusers_denoiser import DiffusersDenoiser
from advunlearn.models.loading import TextToImage
from advunlearn.models.meta_model import skeleton
from advunlearn.training.bank import Banks, make_banks
from advunlearn.training.trainer import TrainResult, train

CONCEPT, RETAIN = ConceptConfig(concept="church"), ["a dog", "a photo of a castle"]
QUICK = TrainConfig(iterations=2, warmup=1, batch=2, retain_batch=1, lr=1e-3)
METHODS = ("full", "xattn", "noxattn", "selfattn", "notime")
# The choices of the published code, by the original names (its `param_choices`), written out for each.
PUBLISHED: dict[str, Callable[[str], bool]] = {
    "full": lambda key: True,
    "xattn": lambda key: "attn2" in key,
    "noxattn": lambda key: not (key.startswith("out.") or "attn2" in key or "time_embed" in key),
    "selfattn": lambda key: "attn1" in key,
    "notime": lambda key: not (key.startswith("out.") or "time_embed" in key),
}


@pytest.fixture(scope="module")
def banks(model: TextToImage) -> Banks:
    small = BankConfig(trajectories=2, retain_trajectories=2, sampling_steps=2, draws_per_sample=1e6)
    return make_banks(model, RunConfig(concept=CONCEPT, bank=small), RETAIN, torch.Generator().manual_seed(0))


def run(model: TextToImage, banks: Banks, **changes: Any) -> TrainResult:
    for bank in banks.by_name().values():
        bank.generator.manual_seed(0)
    attack = AdversaryConfig(steps=1, restarts=1)
    return train(
        model,
        RunConfig(concept=CONCEPT, attack=attack, train=dataclasses.replace(QUICK, **changes)),
        RETAIN,
        banks=banks,
    )


def moved(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    """Return the names, without `text_model.`, of the tensors that differ."""
    a, b = before.state_dict(), after.state_dict()
    return {k.removeprefix("text_model.") for k in a if not torch.equal(a[k], b[k])}


def layer(number: int, *parts: str) -> set[str]:
    """Return the tensors of one CLIP layer, of all its parts or of those named."""
    inside = {
        "self_attn": ("q_proj", "k_proj", "v_proj", "out_proj"),
        "mlp": ("fc1", "fc2"),
        "": ("layer_norm1", "layer_norm2"),
    }
    names = [f"{part}.{m}" if part else m for part in parts or inside for m in inside[part]]
    return {f"encoder.layers.{number}.{name}.{kind}" for name in names for kind in ("weight", "bias")}


LAYERS = [layer(i) for i in range(4)]
NORM = {"final_layer_norm.weight", "final_layer_norm.bias"}
TABLES = {"embeddings.token_embedding.weight", "embeddings.position_embedding.weight"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, set.union(*LAYERS) | NORM),
        ({"final_norm": "freeze"}, set.union(*LAYERS)),
        ({"num_layers": 1}, LAYERS[0] | NORM),
        ({"num_layers": 2, "final_norm": "freeze"}, LAYERS[0] | LAYERS[1]),
        ({"trainable": "attention"}, set.union(*(layer(i, "self_attn") for i in range(4)))),
        (
            {"trainable": "attention", "num_layers": 3, "final_norm": "train"},
            set.union(*(layer(i, "self_attn") for i in range(3))) | NORM,
        ),
        ({"trainable": "mlp"}, set.union(*(layer(i, "mlp") for i in range(4)))),
        ({"trainable": "mlp", "num_layers": 1, "final_norm": "train"}, layer(0, "mlp") | NORM),
        ({"trainable": "all"}, set.union(*LAYERS) | NORM | TABLES),
        ({"trainable": "all", "num_layers": 2, "final_norm": "freeze"}, LAYERS[0] | LAYERS[1] | TABLES),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_of_the_text_encoder(model: TextToImage, banks: Banks, settings: dict[str, Any], expected: set[str]) -> None:
    result = run(model, banks, mode="esd", **settings)
    assert moved(model.text_encoder, result.encoder) == expected
    assert result.denoiser is model.denoiser


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["esd", "advunlearn"])
def test_of_the_unet(model: TextToImage, banks: Banks, method: str, mode: str) -> None:
    unet = model.denoiser.unet  # type: ignore[attr-defined]
    result = run(model, banks, mode=mode, train_method=method)
    expected = {name for name, key in map_unet_keys(unet.state_dict()).items() if PUBLISHED[method](key)}
    assert moved(unet, result.denoiser.unet) == expected  # type: ignore[attr-defined]
    assert result.encoder is model.text_encoder
    assert ("attack_start" in result.losses[1]) == ("retain" in result.losses[0]) == (mode == "advunlearn")


def test_on_sd15_it_is_what_the_published_code_takes() -> None:
    denoiser = skeleton("sd15", torch.device("cpu"), torch.float32).denoiser
    assert isinstance(denoiser, DiffusersDenoiser)
    keys, names = map_unet_keys(denoiser.unet.state_dict()), {id(p): n for n, p in denoiser.unet.named_parameters()}
    counts = []
    for method, published in PUBLISHED.items():
        chosen = [names[id(p)] for p in denoiser.trainable_parameters(method)]  # type: ignore[arg-type]
        assert chosen == [n for n in keys if published(keys[n])], method
        counts.append(len(chosen))
    assert counts == [686, 16 * 5, 686 - 4 - 4 - 16 * 5, 16 * 5, 686 - 4 - 4]  # 16 blocks: q, k, v, out and its bias


def test_mode_esd_unet_is_esd_on_the_cross_attention(model: TextToImage, banks: Banks) -> None:
    a, b = run(model, banks, mode="esd_unet"), run(model, banks, mode="esd", train_method="xattn")
    assert not moved(a.denoiser.unet, b.denoiser.unet) and a.losses == b.losses  # type: ignore[attr-defined]
    chosen = TrainConfig(mode="esd_unet", train_method="selfattn")
    assert (TrainConfig(mode="esd_unet").unet_method, chosen.unet_method) == ("xattn", "selfattn")


def test_the_adversary_attacks_the_unet_that_trains(model: TextToImage, banks: Banks) -> None:
    still, trained = (run(model, banks, train_method="full", lr=lr).losses[1] for lr in (0.0, 1e-3))
    again = run(model, banks, train_method="full", lr=0.0).losses[1]
    assert still["attack_start"] == again["attack_start"] != trained["attack_start"]


def test_a_model_without_a_diffusers_unet_is_refused(model: TextToImage, banks: Banks) -> None:
    class Hosts:  # a denoiser that is no diffusers UNet
        def __getattr__(self, name: str) -> Any:
            return getattr(model.denoiser, name)

    with pytest.raises(AdvUnlearnError, match="train_method full needs a diffusers UNet"):
        run(dataclasses.replace(model, denoiser=Hosts()), banks, train_method="full")
