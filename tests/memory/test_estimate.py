"""The estimate: counted by hand, against its definitions, against a run that was measured; and advice that fits."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from advunlearn.cli import main as cli
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.memory import fake_tensors as live
from advunlearn.memory.estimate import estimate
from advunlearn.memory.fake_tensors import LiveMemory, TooLong, fake_copy
from advunlearn.memory.fit import advise, fitting, sentence
from advunlearn.memory.plan import GIB, USABLE, Estimate, Plan
from advunlearn.models.loading import TextToImage
from advunlearn.models.meta_model import skeleton
from advunlearn.models.text_encoder import trainable_parameters
from advunlearn.training.trainer import train

CPU = torch.device("cpu")
RETAINED = ["a photo of a dog", "a photo of a cat"]
PLAN = Plan(
    run=RunConfig(
        attack=AdversaryConfig(steps=3, restarts=2),
        train=TrainConfig(iterations=10, warmup=4, batch=3, retain_batch=2),
        bank=BankConfig(trajectories=4, retain_trajectories=6, sampling_steps=5, draws_per_sample=2.0),
    ),
    resolution=64,
)


def changed(plan: Plan, **changes: dict[str, Any]) -> Plan:
    """Return a plan with some settings of its run changed."""
    return replace(plan, run=plan.run.replace(**changes))


@pytest.fixture(scope="module")
def shape(tiny_folder: pathlib.Path) -> TextToImage:
    return skeleton(str(tiny_folder), CPU, torch.float32)


@pytest.fixture(scope="module")
def miniature_shape() -> TextToImage:
    return skeleton("miniature", CPU, torch.float32)


@pytest.fixture(scope="module")
def found(shape: TextToImage) -> Estimate:
    return estimate(shape, PLAN, RETAINED, CPU)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("batch", [16, 32])
def test_a_linear_layer_and_its_square_keep_what_autograd_is_known_to_keep(fake: bool, batch: int) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() if fake else torch.enable_grad(), LiveMemory() as live:
        layer = nn.Linear(10, 20, bias=False)
        assert live.live == 4 * 10 * 20
        x = torch.ones(batch, 10)
        loss = layer(x).square().sum()
        # Held: weight, x, the layer's output (kept for the square's backward) and the loss; the square is gone.
        assert live.live == 4 * (200 + batch * 10 + batch * 20 + 1)
        loss.backward()
        del x, loss
        assert live.live == 4 * (200 + 200)  # the weight and its gradient


def test_phases_have_peaks_of_their_own() -> None:
    with LiveMemory() as live:
        live.enter("large")
        torch.zeros(1000)
        live.enter("small")
        kept = torch.zeros(10)
        assert (live.peaks["large"], live.peaks["small"], live.live) == (4000, 40, 40)
        del kept


def test_an_estimate_that_takes_too_long_ends_wherever_it_is(
    shape: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = changed(PLAN, train={"checkpointing": True})
    clock = itertools.count()  # a second for each product of tensors
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    estimate(shape, plan, RETAINED, CPU, 1e9)
    products = next(clock)
    for share in (0.0, 0.2, 0.4, 0.6, 0.8):  # in the bank, an attack, its backward pass and a block's second run
        with pytest.raises(TooLong):
            estimate(shape, plan, RETAINED, CPU, share * products)


def test_a_fake_copy_shares_no_weights_and_keeps_ties() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.append(module[0])
    copied = fake_copy(module, torch.float64)
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert copied[2] is copied[0] and copied[0].weight is not module[0].weight
    assert {p.dtype for p in copied.parameters()} == {torch.float64} and module[0].weight.dtype == torch.float32
    assert copied[1].num_batches_tracked.dtype == torch.long


def test_parts_are_what_they_are_called(shape: TextToImage, found: Estimate) -> None:
    def size(tensors: object) -> int:
        return sum(t.numel() * 4 for t in tensors)  # type: ignore[attr-defined]

    trainable = size(trainable_parameters(shape.text_encoder))
    assert found.gradients == found.last_good == trainable
    assert found.optimiser == pytest.approx(2 * trainable, rel=1e-3)
    parts = (shape.text_encoder, shape.denoiser.unet, shape.vae)  # type: ignore[attr-defined]
    assert found.weights == pytest.approx(sum(size(part.parameters()) for part in parts), rel=1e-3)
    assert found.copy == pytest.approx(size(shape.text_encoder.parameters()), abs=16_000)  # and token ids
    # Three tensors of 4 x 8 x 8 halves for every step of a trajectory, two of what is retained; timesteps and prompt
    # numbers aside.
    assert found.bank == pytest.approx((3 * 4 + 2 * 6) * 5 * 4 * 8 * 8 * 2, rel=1e-2)
    assert list(found.phases) == ["bank", "attack", "train"] and min(found.activations.values()) > 0


def test_a_unet_that_trains_is_copied_in_fp32_with_its_gradients_and_moments(
    shape: TextToImage, tiny_folder: pathlib.Path
) -> None:
    half, unet = skeleton(str(tiny_folder), CPU, torch.bfloat16), shape.denoiser.unet  # type: ignore[attr-defined]
    whole, part = (
        estimate(half, changed(PLAN, train={"train_method": method}), RETAINED, CPU) for method in ("full", "xattn")
    )
    size = 4 * sum(p.numel() for p in unet.parameters())
    crossed = 4 * sum(p.numel() for name, p in unet.named_parameters() if ".attn2." in name)
    assert whole.gradients == whole.last_good == size and part.gradients == part.last_good == crossed
    assert whole.copy == pytest.approx(size, abs=16_000) and part.copy == whole.copy
    assert whole.optimiser == 2 * size + 4 * len(list(unet.parameters()))  # two moments, and a step count per tensor
    # The attack goes through the copy, and so does training; the banks are filled by the original.
    assert (whole.forwards.attack, whole.forwards.train, whole.forwards.bank) == (18, 15, 100)


def test_work_is_counted_as_by_hand(found: Estimate) -> None:
    f = found.forwards
    assert (f.bank, f.attack, f.train) == (10 * 5 * 2, 3 * 2 * 3, (3 + 2) * 3)
    assert f.total == 100 + 10 * 15 + 6 * 18  # the warm-up does not attack


def test_activations_grow_with_the_batch_and_weights_do_not(shape: TextToImage, found: Estimate) -> None:
    bigger = changed(PLAN, train={"batch": 6, "retain_batch": 4})
    twice = estimate(shape, bigger, RETAINED, CPU)
    assert twice.activations["train"] == pytest.approx(2 * found.activations["train"], rel=0.2)
    assert twice.activations["attack"] == found.activations["attack"] and twice.steady == found.steady


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("object", {}),
        ("style", {}),
        ("object", {"mode": "esd"}),
        ("style", {"mode": "esd_unet"}),
        ("object", {"mode": "esd_unet", "checkpointing": True}),
        ("object", {"train_method": "full"}),
        ("style", {"train_method": "full", "checkpointing": True}),
    ],
    ids=str,
)
def test_a_real_run_takes_what_was_predicted(
    miniature_shape: TextToImage, model: TextToImage, kind: str, changes: dict[str, Any]
) -> None:
    plan = changed(PLAN, concept={"concept": "ink", "kind": kind}, train={"iterations": 2, "warmup": 0, **changes})
    predicted = estimate(miniature_shape, plan, RETAINED, CPU)
    with LiveMemory() as live:
        for part in (model.text_encoder, model.denoiser.unet, model.vae):  # type: ignore[attr-defined]
            for tensor in (*part.parameters(), *part.buffers()):
                live.follow(tensor)
        train(model, plan.run, RETAINED)
    assert predicted.peak == pytest.approx(max(live.peaks.values()), rel=0.05)


def test_advice_for_a_small_device_fits_and_names_what_changes(shape: TextToImage) -> None:
    large = changed(PLAN, train={"batch": 64, "retain_batch": 64})
    measure = functools.cache(lambda plan: estimate(shape, plan, RETAINED, CPU))  # as the command does
    full = measure(large)
    budget = full.steady + full.bank + full.activations["train"] // 4
    advice = advise(measure, large, budget)
    assert advice is not None
    plan, smaller = advice
    assert smaller.fits(budget) and not full.fits(budget)
    assert set(plan.changes(large)) == {"batch", "retain_batch", "checkpointing"} and plan.run.train.batch < 64
    assert f"batch {plan.run.train.batch}" in sentence(large, advice) and "checkpointing true" in sentence(
        large, advice
    )
    enough = full.steady + full.bank + int(full.activations["train"] * 0.85 / USABLE)
    advice = advise(measure, large, enough)
    assert advice is not None and advice[0].changes(large) == {"checkpointing": True}  # nothing else has to give way


def test_no_settings_fit_where_the_weights_do_not(shape: TextToImage, found: Estimate) -> None:
    def measure(plan: Plan) -> Estimate:
        return found

    assert advise(measure, PLAN, found.steady) is None
    assert sentence(PLAN, None) == "no settings would fit"
    assert fitting(measure, PLAN, (24, 6)) == {24: (PLAN, found), 6: (PLAN, found)}


def test_sd15_has_its_known_numbers() -> None:
    model = skeleton("sd15", CPU, torch.float16)
    counts = [
        sum(p.numel() for p in part.parameters())
        for part in (model.denoiser.unet, model.text_encoder, model.vae)  # type: ignore[attr-defined]
    ]
    assert counts == [859_520_964, 123_060_480, 83_653_863]
    assert model.denoiser.latent_shape == (4, 64, 64)


def test_the_command_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--batch", "2", "--retain-batch", "2", "--attack-restarts", "1", "--bank-trajectories", "3"]
    assert cli.main(["estimate", "--resolution", "128", "--device", "cuda", "--json", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "cuda" and 0 < result["peak"] < GIB
    assert list(result["fits"]) == ["24 GB", "12 GB", "8 GB", "6 GB"]
    assert cli.main(["estimate", "--resolution", "100"]) == 2
    assert "multiple of 8" in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_refused() -> None:
    with pytest.raises(AdvUnlearnError, match="no such folder"):
        skeleton("nowhere", CPU, torch.float32)


@pytest.mark.parametrize(
    ("attack", "train_changes", "schedule"),
    [
        ({"position": "add", "start": "concept", "norm": "l2", "radius": 1.0}, {"retain_mode": "step"}, "round_robin"),
        ({"position": "add", "space": "conditioning", "start": "random"}, {}, "joined"),
    ],
)
def test_a_real_run_of_other_options_takes_what_was_predicted(
    miniature_shape: TextToImage,
    model: TextToImage,
    attack: dict[str, object],
    train_changes: dict[str, object],
    schedule: str,
) -> None:
    plan = changed(
        PLAN,
        concept={"concept": "church\nsailboat", "schedule": schedule},
        attack=attack,
        train={"iterations": 2, "warmup": 0, **train_changes},
    )
    predicted = estimate(miniature_shape, plan, RETAINED, CPU)
    with LiveMemory() as live:
        for part in (model.text_encoder, model.denoiser.unet, model.vae):  # type: ignore[attr-defined]
            for tensor in (*part.parameters(), *part.buffers()):
                live.follow(tensor)
        train(model, plan.run, RETAINED)
    assert predicted.peak == pytest.approx(max(live.peaks.values()), rel=0.05)


def test_work_of_rarer_attacks_and_of_retain_steps_is_counted_as_by_hand(shape: TextToImage) -> None:
    plan = changed(PLAN, attack={"attack_interval": 4}, train={"retain_mode": "step", "retain_steps": 3})
    f = estimate(shape, plan, RETAINED, CPU).forwards
    # Iterations 4 and 8 attack. A retain step is 2 samples of 3 F.
    assert (f.attack, f.train) == (18, 3 * 3 + 3 * 2 * 3)
    assert f.total == 100 + 10 * 27 + 2 * 18
