"""The estimate: counted by hand, against its definitions, against a run that was measured; and advice that fits."""

from __future__ import annotations

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
from advunlearn.memory.fit import advise, choose_plan, describe_fit, fit_cards, fit_same_result, replace_train
from advunlearn.memory.plan import GIB, Estimate, Forwards, Plan
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
    # A drawn sample renews 1/2 of a step of 2 F: 5 of an iteration, 2 for each of the 4 draws of an attack.
    assert f.sampling == 10 * 5 + 6 * 4 * 2
    assert f.total == 100 + 10 * 15 + 6 * 18 + f.sampling  # the warm-up does not attack


def test_activations_grow_with_the_batch_and_weights_do_not(shape: TextToImage, found: Estimate) -> None:
    bigger = changed(PLAN, train={"batch": 6, "retain_batch": 4})
    twice = estimate(shape, bigger, RETAINED, CPU)
    assert twice.activations["train"] == pytest.approx(2 * found.activations["train"], rel=0.2)
    assert twice.activations["attack"] == found.activations["attack"] and twice.steady == found.steady


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("object", {}),
        pytest.param("style", {}, marks=pytest.mark.slow),
        pytest.param("object", {"mode": "esd"}, marks=pytest.mark.slow),
        pytest.param("style", {"mode": "esd_unet"}, marks=pytest.mark.slow),
        ("object", {"mode": "esd_unet", "checkpointing": True}),
        pytest.param("object", {"train_method": "full"}, marks=pytest.mark.slow),
        pytest.param("style", {"train_method": "full", "checkpointing": True}, marks=pytest.mark.slow),
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


def linear_estimate(plan: Plan) -> Estimate:
    """Return an estimate of 2 GiB and 1 GiB a sample in the largest pass, half of that with checkpointing."""
    train = plan.run.train
    samples = train.micro_batch or plan.run.samples_in_one_pass
    pixels = (plan.resolution / 512) ** 2 * (0.5 if plan.dtype == "bfloat16" else 1)
    peak = int((2 + samples * pixels * (0.5 if train.checkpointing else 1)) * GIB)
    return Estimate(
        weights=GIB,
        copy=GIB,
        gradients=0,
        optimiser=0,
        last_good=0,
        phases={"train": peak},
        bank=0,
        movable=0,
        device="cuda",
        forwards=Forwards(bank=0, attack=0, train=0, sampling=0, total=0),
    )


SD15 = Plan(run=RunConfig(), resolution=512)  # 8 concept and 12 retained samples: 22 GiB


@pytest.mark.parametrize(
    ("gib", "changes"),
    [
        (25, {}),
        (20, {"micro_batch": 16}),  # a tenth is kept: 18 = 2 + 16
        (5, {"micro_batch": 2}),
        (3, {"micro_batch": 1, "checkpointing": True}),  # 2.7 < 2 + 1, but > 2 + 0.5
    ],
)
def test_the_largest_micro_batch_that_fits_is_chosen(gib: int, changes: dict[str, object]) -> None:
    fit = fit_same_result(linear_estimate, SD15, gib * GIB)
    assert fit is not None and fit[0].changes(SD15) == changes
    assert fit[1] == linear_estimate(fit[0]) and fit[1].fits(gib * GIB)


def test_only_what_does_not_fit_with_the_same_result_gets_smaller() -> None:
    assert fit_same_result(linear_estimate, SD15, 2.4 * GIB) is None  # 2.16 usable, 2.5 needed
    fit = advise(linear_estimate, SD15, 2.4 * GIB)
    changes = {"resolution": 256, "micro_batch": 1, "checkpointing": True}  # 2 + 0.125
    assert fit is not None and fit[0].changes(SD15) == changes
    host = replace(SD15, dtype="float32")
    fit = advise(linear_estimate, host, 2.6 * GIB)  # 2.34 usable: one sample with checkpointing in bf16, 2.25
    assert fit is not None and fit[0].changes(host) == {"dtype": "bfloat16", "micro_batch": 1, "checkpointing": True}


def test_the_setting_memory_chooses_the_plan() -> None:
    def chosen(mode: str, gib: float | None) -> dict[str, object]:
        limit = None if gib is None else gib * GIB
        return dict(choose_plan(mode, linear_estimate, SD15, limit).changes(SD15))

    assert chosen("auto", 20) == {"micro_batch": 16}
    assert chosen("auto", None) == chosen("fast", 5) == chosen("auto", 1) == {}
    assert chosen("low", 100) == {"micro_batch": 1, "checkpointing": True, "offload": True}
    fixed = replace_train(SD15, micro_batch=3)
    assert choose_plan("auto", linear_estimate, fixed, 5 * GIB) == fixed


@pytest.mark.parametrize("size", [2])
def test_micro_batches_need_less_memory_as_predicted_and_no_more_work(
    miniature_shape: TextToImage, model: TextToImage, size: int
) -> None:
    whole = changed(PLAN, train={"iterations": 2, "warmup": 0, "batch": 5, "retain_batch": 4})
    parts = replace_train(whole, micro_batch=size)
    predicted, most = (estimate(miniature_shape, plan, RETAINED, CPU) for plan in (parts, whole))
    assert predicted.forwards == most.forwards and predicted.peak < most.peak
    with LiveMemory() as live:
        for part in (model.text_encoder, model.denoiser.unet, model.vae):  # type: ignore[attr-defined]
            for tensor in (*part.parameters(), *part.buffers()):
                live.follow(tensor)
        train(model, parts.run, RETAINED)
    assert predicted.peak == pytest.approx(max(live.peaks.values()), rel=0.05)


def test_a_retained_prompt_of_several_chunks_is_part_of_the_estimate(miniature_shape: TextToImage) -> None:
    plan = changed(PLAN, train={"iterations": 2, "warmup": 0, "batch": 1, "retain_batch": 4})
    long = [*RETAINED, "dog " * 100]
    short, with_long = (estimate(miniature_shape, plan, retained, CPU) for retained in (RETAINED, long))
    assert with_long.peak > short.peak and with_long.forwards.train == short.forwards.train


def test_no_settings_fit_where_the_weights_do_not(shape: TextToImage, found: Estimate) -> None:
    def measure(plan: Plan) -> Estimate:
        return found

    assert advise(measure, PLAN, found.steady) is None
    assert describe_fit(PLAN, None) == "no settings would fit"
    assert fit_cards(measure, PLAN, (24, 6)) == {24: (PLAN, found), 6: (PLAN, found)}


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
    assert list(result["fits"]) == ["24 GB", "16 GB", "12 GB", "8 GB", "6 GB"]
    assert cli.main(["estimate", "--resolution", "100"]) == 2
    assert "multiple of 8" in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_refused() -> None:
    with pytest.raises(AdvUnlearnError, match="no such folder"):
        skeleton("nowhere", CPU, torch.float32)


@pytest.mark.slow
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
    assert f.sampling == 10 * (3 + 3 * 2) + 2 * 4 * 2
    assert f.total == 100 + 10 * 27 + 2 * 18 + f.sampling


def test_mode_official_is_estimated_with_its_quirks(shape: TextToImage) -> None:
    # Lengths in words and the one timestep have no values to read on fake tensors. A step attacks 2 samples of 3 F.
    plan = changed(PLAN, train={"mode": "official"})
    f = estimate(shape, plan, RETAINED, CPU).forwards
    assert (f.bank, f.attack, f.train) == (0, 3 * 2 * 3, (3 + 2) * 3)
    # A sample costs 2.8 steps of 2 F and its predictions, 2 F, of a retained one 1 F; an attack draws for its 3 steps.
    assert f.sampling == round(10 * (3 * 7.6 + 2 * 6.6) + 6 * 3 * 2 * 7.6)
