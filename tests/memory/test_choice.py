"""The command line chooses what fits into the free memory of a GPU; only the query of that memory is replaced."""

from __future__ import annotations

import copy
import pathlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from advunlearn.cli.commands import train
from advunlearn.config.io import ModelConfig
from advunlearn.config.training import RunConfig
from advunlearn.memory import passes
from advunlearn.memory.estimate import Estimator
from advunlearn.memory.passes import measure_pass
from advunlearn.memory.plan import Plan
from advunlearn.models.loading import TextToImage
from advunlearn.models.meta_model import skeleton

RUN = RunConfig.from_dict({"bank": {"trajectories": 2, "retain_trajectories": 2}})
CUDA = torch.device("cuda")
PLAN = Plan(run=RUN, resolution=64, dtype="float32")


@pytest.fixture(scope="module")
def on_cuda(tiny_folder: pathlib.Path) -> TextToImage:
    """The shape of a model that says it is on a GPU."""
    model = skeleton(str(tiny_folder), CUDA, torch.float32)
    denoiser: Any = copy.copy(model.denoiser)
    kind: Any = type(denoiser)
    denoiser.__class__ = type("OnCuda", (kind,), {"device": property(lambda self: CUDA)})
    denoiser.latent_shape = (denoiser.latent_shape[0], 8, 8)
    return replace(model, denoiser=denoiser)


@pytest.fixture(scope="module")
def estimator(on_cuda: TextToImage) -> Estimator:
    """One for all tests, so that nothing is measured twice."""
    return Estimator(on_cuda, ["a dog"], CUDA)


def test_less_free_memory_means_smaller_micro_batches_and_then_offloading(
    on_cuda: TextToImage,
    estimator: Estimator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured: list[tuple[bool, int]] = []

    def note(denoiser: Any, live: Any, width: Any, gradients: bool, checkpointing: bool, samples: int) -> Any:
        measured.append((gradients, samples))
        return measure_pass(denoiser, live, width, gradients, checkpointing, samples)

    monkeypatch.setattr(passes, "measure_pass", note)
    monkeypatch.setattr(train, "Estimator", lambda *args: estimator)
    whole = estimator(PLAN)
    single, offloaded = (
        estimator(replace(PLAN, run=RUN.replace(train={"micro_batch": 1, "offload": value}))) for value in (False, True)
    )
    assert offloaded.peak < single.peak < whole.peak
    reserved = whole.weights  # by the model that is loaded already
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)

    def choose(usable: float) -> dict[str, Any]:
        """Return the changed training settings where that many bytes may be used, nine tenths of what is free."""
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (usable / 0.9 + 1 - reserved, 10**12))
        chosen = train.fit_memory(on_cuda, ModelConfig(), RUN, ["a dog"]).train.to_dict()
        return {name: value for name, value in chosen.items() if value != getattr(RUN.train, name)}

    assert choose(whole.peak) == {}
    assert capsys.readouterr().err == ""
    middle = choose((whole.peak + single.peak) / 2)
    assert list(middle) == ["micro_batch"] and 1 < middle["micro_batch"] < 20
    assert capsys.readouterr().err == f"memory auto: micro_batch {middle['micro_batch']}\n"
    assert choose(single.peak) == {"micro_batch": 1}
    assert len(estimator.estimates) <= 5  # for all of these: the whole batch, one sample, and guesses in between
    assert choose(offloaded.peak) == {"micro_batch": 1, "offload": True}
    assert sorted(measured) == [(False, 0), (True, 0)]  # two passes of the UNet, for any number of samples


def test_fast_and_low_ask_nothing(on_cuda: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    assert train.fit_memory(on_cuda, ModelConfig(memory="fast"), RUN, ["a dog"]) == RUN
    low = train.fit_memory(on_cuda, ModelConfig(memory="low"), RUN, ["a dog"]).train
    assert (low.micro_batch, low.checkpointing, low.offload) == (1, True, True)


def test_an_offloaded_estimate_has_what_is_moved_in_main_memory(on_cuda: TextToImage, estimator: Estimator) -> None:
    kept = estimator(PLAN)
    moved = estimator(replace(PLAN, run=RUN.replace(train={"offload": True})))
    encoder, vae = on_cuda.text_encoder, on_cuda.vae
    originals = sum(t.numel() * t.element_size() for m in (encoder, vae) for t in (*m.parameters(), *m.buffers()))
    assert kept.movable == originals
    assert moved.offloaded == kept.last_good + kept.optimiser + originals
    assert moved.phases["train"] == kept.phases["train"] - moved.offloaded
    assert moved.steady == kept.steady - moved.offloaded
    on_cpu = replace(kept, device="cpu")
    assert on_cpu.with_offload() == on_cpu  # nothing to gain there
