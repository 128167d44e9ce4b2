"""The benchmark's figures: counted by hand where that can be done, and made of what they say they are made of."""

from __future__ import annotations

import functools
import json
import statistics
from dataclasses import replace

import pytest
import torch

from advunlearn.config.training import BankConfig
from advunlearn.memory.plan import USABLE
from advunlearn.models.counting import count_forwards
from advunlearn.models.loading import TextToImage
from advunlearn.training.bank import TrajectoryBank
from advunlearn.training.official import FreshSampler, PublishedSampler
from benchmarks.__main__ import main
from benchmarks.suites import SUITES, bank, iteration, memory, scale
from benchmarks.suites.iteration import Cost, Work
from benchmarks.suites.memory import Case, by_allocator

# 2 attack steps, 1 + 2 samples, trajectories of 4 steps.
SMALL = Work(
    replace(iteration.PUBLISHED.attack, steps=2),
    replace(iteration.PUBLISHED.train, retain_batch=2),
    BankConfig(trajectories=2, retain_trajectories=2, sampling_steps=4),
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the iteration that the command measures."""
    for name, module in (("iteration", iteration), ("bank", bank)):
        monkeypatch.setitem(SUITES, name, functools.partial(module.measure, work=SMALL))


def test_an_iterations_passes_are_counted_as_by_hand(model: TextToImage) -> None:
    counted = replace(model, denoiser=count_forwards(model.denoiser))
    banks, step = iteration.sampled(counted, TrajectoryBank, SMALL)
    assert step.forwards == 2  # of each step, with and without the prompt
    assert [c.forwards for c in iteration.iterations(counted, banks, 2, SMALL)] == [3 * (2 + 1 + 2)] * 2
    fresh, _ = iteration.sampled(counted, FreshSampler, SMALL)
    (cost,) = iteration.iterations(counted, fresh, 1, SMALL)
    assert cost.forwards > 2 * 3 * (2 + 1 + 2)  # every draw is sampled first
    # 1 + 2 draws to train; 1 and one in each of 2 steps to attack; each takes a step of 2 F for every 40 draws.
    renewed = SMALL.sampling(TrajectoryBank, Cost(0.5, 2.0))
    assert (renewed.seconds, renewed.forwards) == pytest.approx((0.5 * 6 / 40, 2 * 6 / 40))


def test_counted_passes_are_those_that_the_unet_runs(model: TextToImage) -> None:
    counted = count_forwards(model.denoiser)
    unet = model.denoiser.unet  # type: ignore[attr-defined]
    ran = {"forward": 0, "backward": 0}

    def forward(_: torch.nn.Module, args: tuple[torch.Tensor, ...], __: object) -> None:
        ran["forward"] += len(args[0])

    def backward(_: torch.nn.Module, __: object, gradients: tuple[torch.Tensor, ...]) -> None:
        ran["backward"] += len(gradients[0])

    banks, _ = iteration.sampled(replace(model, denoiser=counted), TrajectoryBank, SMALL)
    # Every gradient to the conditioning goes through the last convolution.
    hooks = [unet.register_forward_hook(forward), unet.conv_out.register_full_backward_hook(backward)]
    try:
        (cost,) = iteration.iterations(replace(model, denoiser=counted), banks, 1, SMALL)
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == {"forward": 2 + 1 + 2, "backward": 2 + 1 + 2}
    assert cost.forwards == ran["forward"] + 2 * ran["backward"]


def test_the_published_way_takes_what_it_takes_on_average(model: TextToImage) -> None:
    counted = count_forwards(model.denoiser)
    fresh, _ = iteration.sampled(replace(model, denoiser=counted), FreshSampler, SMALL)
    drawn = []
    for _ in range(60):
        counted.forwards = 0
        fresh.concept.draw(2)
        drawn.append(counted.forwards)
    expected = 2 * FreshSampler.steps_per_draw(2, SMALL.bank)
    assert expected == 2 * 2 * 2.5  # of two numbers from 1 to 4
    # Standard deviation of a draw: 3.2 F, of the mean of sixty 0.41.
    assert statistics.mean(drawn) == pytest.approx(expected, abs=1.3) and len(set(drawn)) > 4


def test_the_published_settings_are_108_passes_and_cost_what_the_published_code_costs() -> None:
    work = iteration.PUBLISHED
    passes = work.attack.steps * work.attack.restarts + work.train.batch + work.train.retain_batch
    assert 3 * passes == 108
    # There a trajectory has 49 steps for k = 0 and 50 - k for k = 1 to 49, on average 25.48, of 2 F. Each attack step
    # and the concept sample add two predictions of the original model, each retained sample one.
    sampled = work.sampling(PublishedSampler, Cost(0.0, 2.0)).forwards
    assert sampled == pytest.approx(36 * 2 * 25.48 + 31 * 2 + 5)
    assert sampled + 108 == pytest.approx(2009.56)


def test_the_command_gives_the_figures_that_its_parts_make(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--suite", "iteration", "bank", "--repeats", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    figures, parts = found["iteration"], found["iteration"]["parts"]
    assert figures["forward_equivalents_per_iteration"] == pytest.approx(15 + 0.3)
    whole = parts["seconds"]["median"] + parts["renewal_seconds"]
    assert figures["speedup_over_official_sampling"] == pytest.approx(parts["official_seconds"]["median"] / whole)
    bare = parts["bare_seconds"]["median"]
    assert figures["overhead_over_bare_passes"] == pytest.approx(parts["seconds"]["median"] / bare)
    assert found["bank"]["forward_equivalents_per_step"] == 2 and found["bank"]["fill_over_bare_forwards"] > 0
    spread = found["bank"]["parts"]["fill"]
    assert spread["least"] == spread["median"] == found["bank"]["fill_over_bare_forwards"]  # of one repeat
    assert found["iteration"]["suite_seconds"] > parts["seconds"]["median"] and found["machine"]["processor"]
    assert int(found["machine"]["cores"]) >= 1 and found["machine"]["torch"] == torch.__version__
    with pytest.raises(SystemExit):
        main(["--repeats", "0"])


def test_a_banks_size_is_that_of_its_tensors(model: TextToImage) -> None:
    banks, _ = iteration.sampled(replace(model, denoiser=count_forwards(model.denoiser)), TrajectoryBank, SMALL)
    held = sum(
        t.numel() * t.element_size()
        for b in banks.tensors().values()
        for k, t in b.items()
        if k in ("x_t", "eps_anchor", "eps_cond")
    )
    assert bank.size_of(SMALL.bank, model.denoiser.latent_shape) * 2**30 == held
    assert bank.sizes()["50 steps, bfloat16"] == pytest.approx((442 * 2 + 3) * 50 * 4 * 64 * 64 * 2 / 2**30)


def test_scale_measures_a_shape_with_random_weights() -> None:
    found = scale.measure(1, "cpu", model="miniature", resolution=64)
    assert found["parts"]["forward_equivalents"] == 3 * (8 + 1 + 1)
    assert found["overhead_over_bare_passes"] == found["parts"]["overhead"]["median"] > 0


@pytest.mark.slow
def test_the_suites_memory_is_that_of_the_shown_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CASES", {"small": Case("miniature", 64, "float32", 1, 1, 1)})
    monkeypatch.setattr(memory, "SHOWN", "small")
    monkeypatch.setattr(memory, "CARDS", {"8 GiB": memory.CARDS["8 GiB"]})  # one of them: each takes its seconds
    found = memory.measure()
    row = found["cases"]["small"]
    assert found["predicted_gib"] == row["predicted_gib"] and found["measured_gib"] == row["measured_gib"]
    assert row["ratio"] == pytest.approx(1, abs=0.02)
    for card, needs in found["sd15_512px_gib"].items():
        assert 2 < needs < USABLE * int(card.removesuffix(" GiB"))  # more than the weights alone


@pytest.mark.slow
def test_predicted_memory_is_what_the_allocator_gives_out() -> None:
    case = Case("miniature", 64, "float32", 2, 2, 2)
    assert case.predicted() == pytest.approx(by_allocator(case.run), rel=0.02)
    twice = replace(case, batch=8, retain_batch=8)
    assert twice.predicted() > 1.2 * case.predicted()
