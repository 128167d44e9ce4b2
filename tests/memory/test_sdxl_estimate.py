"""SDXL's memory on small latents: predicted, and measured in a run, for each choice of encoders and micro-batch."""

from __future__ import annotations

import pathlib

import pytest
import torch
from tiny_models import tiny_sdxl

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.training import BankConfig, Encoders, RunConfig, TrainConfig
from advunlearn.memory.estimate import estimate
from advunlearn.memory.fake_tensors import LiveMemory
from advunlearn.memory.plan import Plan
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.meta_model import skeleton
from advunlearn.training.trainer import train

CPU = torch.device("cpu")
RETAINED = ["a photo of a dog", "a photo of a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="module")
def sdxl(folder: pathlib.Path) -> TextToImage:
    return load(str(folder))


def make_plan(encoders: Encoders, micro_batch: int) -> Plan:
    return Plan(
        run=RunConfig(
            attack=AdversaryConfig(steps=2, restarts=1),
            train=TrainConfig(
                iterations=2, warmup=0, batch=3, retain_batch=2, encoders=encoders, micro_batch=micro_batch
            ),
            bank=BankConfig(trajectories=2, retain_trajectories=2, sampling_steps=3),
        ),
        resolution=64,
    )


def measure(model: TextToImage, plan: Plan) -> int:
    """Return the peak of a real run."""
    with LiveMemory() as live:
        for part in (model.text_encoder, model.denoiser.unet, model.vae):  # type: ignore[attr-defined]
            for tensor in (*part.parameters(), *part.buffers()):
                live.follow(tensor)
        train(model, plan.run, RETAINED)
    return max(live.peaks.values())


SLOW = [(encoders, micro_batch) for encoders in ("both", "clip_l", "clip_g") for micro_batch in (0, 1)][1:]


@pytest.mark.parametrize(
    ("encoders", "micro_batch"), [("both", 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_a_run_takes_what_was_predicted(
    folder: pathlib.Path, sdxl: TextToImage, encoders: Encoders, micro_batch: int
) -> None:
    plan = make_plan(encoders, micro_batch)
    predicted = estimate(skeleton(str(folder), CPU, torch.float32), plan, RETAINED, CPU).peak
    assert predicted == pytest.approx(measure(sdxl, plan), rel=0.05)
