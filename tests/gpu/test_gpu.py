"""On a real GPU: training in every dtype, micro-batches, offloading, resuming, attacks, and the predicted memory.

    python -m pytest tests/gpu

Without a GPU all of it is skipped; ADVUNLEARN_TEST_DEVICE=cpu runs on the CPU what does not measure CUDA's memory.
"""

from __future__ import annotations

import gc
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack_table import BLIND, attacked, two_cases
from torch import Tensor

from advunlearn.attacks.base import AttackContext
from advunlearn.attacks.registry import ATTACKS
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.training import RunConfig
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.judges.convnet import ConvJudge
from advunlearn.memory.estimate import estimate
from advunlearn.memory.plan import GIB, Plan
from advunlearn.miniature.captions import retain_prompts
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.meta_model import skeleton
from advunlearn.training.bank import make_banks
from advunlearn.training.checkpoint import Checkpoints
from advunlearn.training.events import Progress
from advunlearn.training.trainer import Trainer, train
from benchmarks.suites.memory import RETAINED, random_model

DEVICE = torch.device(os.environ.get("ADVUNLEARN_TEST_DEVICE", "cuda"))
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch finds none here"
)
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="is about CUDA's memory")
OPTIONS: dict[str, dict[str, Any]] = {
    "concept": {"concept": "church"},
    "train": {"iterations": 2, "warmup": 0, "batch": 3, "retain_batch": 3, "lr": 1e-5},
    "attack": {"steps": 2, "restarts": 2},
    "bank": {"trajectories": 2, "retain_trajectories": 2, "sampling_steps": 2},
}
RUN = RunConfig.from_dict(OPTIONS)


@pytest.fixture(scope="module")
def on_gpu() -> TextToImage:
    return load("miniature", DEVICE)


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
    assert whole.device.type == DEVICE.type and (parts - whole).norm() < 1e-2 * whole.norm()
    assert (other - whole).norm() > 0.1 * whole.norm()  # the comparison can fail


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_training_in_16_bits_has_nearly_the_losses_of_fp32(on_gpu: TextToImage, dtype: torch.dtype) -> None:
    expected = train(on_gpu, RUN, RETAINED).losses
    losses = train(load("miniature", DEVICE, dtype), RUN, RETAINED).losses
    assert all(math.isfinite(value) for row in losses for value in row.values())
    assert losses[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.1)


def test_offloaded_training_ends_with_the_same_weights(on_gpu: TextToImage) -> None:
    device = next(on_gpu.text_encoder.parameters()).device
    whole, offloaded = (train(on_gpu, RUN.replace(train={"offload": value}), RETAINED) for value in (False, True))
    for a, b in zip(whole.encoder.parameters(), offloaded.encoder.parameters(), strict=True):
        assert b.device == device and (a - b).abs().max() <= 4 * OPTIONS["train"]["lr"]  # two steps of Adam each
    assert next(on_gpu.text_encoder.parameters()).device == device == next(on_gpu.vae.parameters()).device


@needs_cuda
def test_between_steps_moments_and_last_good_weights_are_on_the_cpu(on_gpu: TextToImage) -> None:
    run = RUN.replace(train={"offload": True})
    generator = torch.Generator().manual_seed(0)
    trainer = Trainer(on_gpu, run, make_banks(on_gpu, run, RETAINED, generator), RETAINED, generator)
    trainer.run()
    moments = [state["exp_avg_sq"] for state in trainer.state.adam.state.values()]
    assert moments and {tensor.device.type for tensor in (*moments, *trainer.state.good_weights)} == {"cpu"}
    assert {parameter.device.type for parameter in trainer.parameters} == {"cuda"}


def test_a_resumed_run_ends_with_nearly_the_same_weights(on_gpu: TextToImage, tmp_path: pathlib.Path) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.phase == "train" and progress.iteration == 2:
            raise Stop

    def encoder(**options: Any) -> list[Tensor]:
        return [p.detach().cpu() for p in train(on_gpu, run, RETAINED, **options).encoder.parameters()]

    run = RUN.replace(train={"iterations": 4})
    whole = encoder()
    with pytest.raises(Stop):
        train(on_gpu, run, RETAINED, callback=stop, checkpoints=Checkpoints(tmp_path, 1))
    resumed = encoder(checkpoints=Checkpoints(tmp_path, 1), resume=True)
    step = OPTIONS["train"]["lr"]
    assert max((a - b).abs().max() for a, b in zip(whole, resumed, strict=True)) <= 2 * 4 * step
    start = on_gpu.text_encoder.parameters()
    assert max((a - b.cpu()).abs().max() for a, b in zip(whole, start, strict=True)) > 0.5 * step  # it did train


@pytest.fixture(scope="module")
def context_on_gpu(on_gpu: TextToImage) -> AttackContext:
    return two_cases(on_gpu)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_starts_as_on_a_cpu_and_runs_to_its_end(
    name: str, context: AttackContext, context_on_gpu: AttackContext
) -> None:
    attack, losses = attacked(name, context_on_gpu)
    assert attack.result().conditioning.device.type == DEVICE.type
    if name not in BLIND:
        _, expected = attacked(name, context, steps=1)
        assert all(map(math.isfinite, losses)) and losses[0] == pytest.approx(expected[0], rel=0.05)


def test_an_evaluation_counts_nearly_as_on_a_cpu(on_gpu: TextToImage, model: TextToImage, judge: ConvJudge) -> None:
    def evaluate(model: TextToImage) -> int:
        budget = EvaluateConfig(cases=8, attack_steps=4, repeats=0)
        evaluator = Evaluator(model, judge, ConceptConfig(concept="church"), budget)
        measured = evaluator.measure(evaluator.original, ["soft_prefix"], utility=False)
        return int(measured.asr["clean"]["success"])

    counts = [evaluate(on_gpu), evaluate(model)]
    assert min(counts) > 4 and abs(counts[0] - counts[1]) <= 1


@needs_cuda
@pytest.mark.parametrize("changes", [{}, {"micro_batch": 1}, {"offload": True}, {"checkpointing": True}], ids=str)
def test_the_predicted_peak_is_the_allocators(
    changes: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    run = RunConfig.from_dict({**OPTIONS, "train": {**OPTIONS["train"], "batch": 4, "retain_batch": 4, **changes}})
    plan = Plan(run=run, resolution=256, dtype="float16")
    predicted = estimate(skeleton("sd15", DEVICE, torch.float16), plan, RETAINED, DEVICE).peak
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = random_model("sd15", plan.resolution, torch.float16, DEVICE)
    torch.cuda.reset_peak_memory_stats()
    train(model, run, RETAINED)
    measured = torch.cuda.max_memory_allocated() - before
    record_property("predicted_gib", predicted / GIB)
    record_property("measured_gib", measured / GIB)
    assert measured == pytest.approx(predicted, rel=0.15)


def test_the_miniature_forgets_on_a_gpu_as_on_a_cpu(on_gpu: TextToImage, model: TextToImage) -> None:
    run = RunConfig.from_dict({"concept": {"concept": "church"}, "train": {"iterations": 20, "warmup": 5}})
    prompts = retain_prompts(["church"], "object")
    losses = [[row["loss"] for row in train(each, run, prompts).losses] for each in (on_gpu, model)]
    assert sum(losses[0][-3:]) < 0.8 * sum(losses[0][:3])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.05)
