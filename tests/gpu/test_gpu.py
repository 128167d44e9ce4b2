"""On a real GPU: training in every dtype, micro-batches, offloading, and the memory that was predicted.

    python -m pytest tests/gpu

Without a GPU all of it is skipped.
"""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from advunlearn.config.training import RunConfig
from advunlearn.memory.estimate import estimate
from advunlearn.memory.plan import Plan
from advunlearn.miniature.captions import retain_prompts
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.meta_model import skeleton
from advunlearn.training.bank import make_banks
from advunlearn.training.trainer import Trainer, train
from benchmarks.suites.memory import RETAINED, random_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch finds none here")
CUDA = torch.device("cuda:0")
OPTIONS: dict[str, dict[str, Any]] = {
    "concept": {"concept": "church"},
    "train": {"iterations": 2, "warmup": 0, "batch": 3, "retain_batch": 3, "lr": 1e-5},
    "attack": {"steps": 2, "restarts": 2},
    "bank": {"trajectories": 2, "retain_trajectories": 2, "sampling_steps": 2},
}
RUN = RunConfig.from_dict(OPTIONS)


@pytest.fixture(scope="module")
def on_gpu() -> TextToImage:
    return load("miniature", CUDA)


def gradients(model: TextToImage, run: RunConfig) -> Tensor:
    """Return the gradient of an iteration after its attack, as one vector."""
    generator = torch.Generator().manual_seed(0)
    banks = make_banks(model, run, RETAINED, generator)
    trainer = Trainer(model, run, banks, RETAINED, generator)
    with trainer._training():
        trainer.attack(0, lambda progress: None)
        trainer._backward(trainer.losses(0))
    return torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None])


def test_micro_batches_have_the_gradient_of_the_whole_batch(on_gpu: TextToImage) -> None:
    whole = gradients(on_gpu, RUN)
    parts = gradients(on_gpu, RUN.replace(train={"micro_batch": 1}))
    other = gradients(on_gpu, RUN.replace(concept={"concept": "castle"}))
    assert whole.device.type == "cuda" and (parts - whole).norm() < 1e-2 * whole.norm()
    assert (other - whole).norm() > 0.1 * whole.norm()  # the comparison can fail


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_training_in_16_bits_has_nearly_the_losses_of_fp32(on_gpu: TextToImage, dtype: torch.dtype) -> None:
    expected = train(on_gpu, RUN, RETAINED).losses
    losses = train(load("miniature", CUDA, dtype), RUN, RETAINED).losses
    assert all(math.isfinite(value) for row in losses for value in row.values())
    assert losses[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.1)


def test_offloaded_training_ends_with_the_same_weights(on_gpu: TextToImage) -> None:
    device = next(on_gpu.text_encoder.parameters()).device
    whole, offloaded = (train(on_gpu, RUN.replace(train={"offload": value}), RETAINED) for value in (False, True))
    for a, b in zip(whole.encoder.parameters(), offloaded.encoder.parameters(), strict=True):
        assert b.device == device and (a - b).abs().max() <= 4 * OPTIONS["train"]["lr"]  # two steps of Adam each
    assert next(on_gpu.text_encoder.parameters()).device == device == next(on_gpu.vae.parameters()).device


def test_between_steps_moments_and_last_good_weights_are_on_the_cpu(on_gpu: TextToImage) -> None:
    run = RUN.replace(train={"offload": True})
    generator = torch.Generator().manual_seed(0)
    trainer = Trainer(on_gpu, run, make_banks(on_gpu, run, RETAINED, generator), RETAINED, generator)
    trainer.run()
    moments = [state["exp_avg_sq"] for state in trainer.state.adam.state.values()]
    assert moments and {tensor.device.type for tensor in (*moments, *trainer.state.good_weights)} == {"cpu"}
    assert {parameter.device.type for parameter in trainer.parameters} == {"cuda"}


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 1}, {"offload": True}, {"checkpointing": True}], ids=str)
def test_the_predicted_peak_is_the_allocators(changes: dict[str, Any]) -> None:
    run = RunConfig.from_dict({**OPTIONS, "train": {**OPTIONS["train"], "batch": 4, "retain_batch": 4, **changes}})
    plan = Plan(run=run, resolution=256, dtype="float16")
    predicted = estimate(skeleton("sd15", CUDA, torch.float16), plan, RETAINED, CUDA).peak
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = random_model("sd15", plan.resolution, torch.float16, CUDA)
    torch.cuda.reset_peak_memory_stats()
    train(model, run, RETAINED)
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(predicted, rel=0.15)


def test_the_miniature_forgets_on_a_gpu_as_on_a_cpu(on_gpu: TextToImage, model: TextToImage) -> None:
    run = RunConfig.from_dict({"concept": {"concept": "church"}, "train": {"iterations": 20, "warmup": 5}})
    prompts = retain_prompts(["church"], "object")
    losses = [[row["loss"] for row in train(each, run, prompts).losses] for each in (on_gpu, model)]
    assert sum(losses[0][-3:]) < 0.8 * sum(losses[0][:3])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.05)
