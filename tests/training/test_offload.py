"""Offloading moves tensors and changes no value."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest
import torch
from torch import nn

from advunlearn.config.training import RunConfig
from advunlearn.models.loading import TextToImage
from advunlearn.models.placement import on_device
from advunlearn.models.sdxl_text_encoder import DualTextEncoder
from advunlearn.models.text_encoder import trainable_copy
from advunlearn.training.checkpoint import Checkpoints
from advunlearn.training.offload import OffloadedAdam, offloaded_modules
from advunlearn.training.trainer import train

RETAINED = ["a dog", "a photo of a castle"]
RUN = RunConfig.from_dict(
    {
        "concept": {"concept": "church"},
        "train": {"iterations": 3, "warmup": 1, "batch": 3, "retain_batch": 2},
        "attack": {"steps": 2, "restarts": 2},
        "bank": {"trajectories": 2, "retain_trajectories": 2, "sampling_steps": 2, "draws_per_sample": 1.0},
    }
)


def weights(model: TextToImage, run: RunConfig, **options: Any) -> list[torch.Tensor]:
    return [p.detach() for p in train(model, run, RETAINED, **options).encoder.parameters()]


@pytest.mark.parametrize("changes", [{}, {"retain_mode": "step", "retain_steps": 2}], ids=str)
def test_an_offloaded_run_ends_with_the_same_bits(tiny_model: TextToImage, changes: dict[str, Any]) -> None:
    run = RUN.replace(train=changes)
    expected = weights(tiny_model, run)
    actual = weights(tiny_model, run.replace(train={"offload": True}))
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
    other = weights(tiny_model, run.replace(train={"seed": 1}))
    assert not all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))  # it can fail


def test_a_run_may_be_offloaded_when_it_is_resumed(tiny_model: TextToImage, tmp_path: pathlib.Path) -> None:
    expected = weights(tiny_model, RUN)
    checkpoints = Checkpoints(tmp_path)
    weights(tiny_model, RUN, checkpoints=checkpoints, callback=lambda p: p.phase == "train" and p.iteration == 2)
    offloaded = RUN.replace(train={"offload": True})
    actual = weights(tiny_model, offloaded, checkpoints=checkpoints, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))


def test_moments_are_on_the_device_during_a_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(3, 2)
    adam = OffloadedAdam(layer.parameters(), lr=0.1)
    moved: list[tuple[int, str]] = []
    move = OffloadedAdam._move_moments

    def note(self: OffloadedAdam, parameter: torch.Tensor, device: torch.device) -> None:
        moved.append((parameter.numel(), device.type))
        move(self, parameter, device)

    monkeypatch.setattr(OffloadedAdam, "_move_moments", note)
    layer(torch.ones(3)).sum().backward()
    adam.step()
    assert moved == [(6, "cpu"), (6, "cpu"), (2, "cpu"), (2, "cpu")]  # one at a time: to its device, and back
    assert [len(group["params"]) for group in adam.param_groups] == [2]


class RecordedLinear(nn.Linear):
    """Takes no values from the device meta, which has none, and records where it was sent."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.places: list[str] = []

    def to(self, device: torch.device) -> RecordedLinear:  # type: ignore[override]
        self.places.append(device.type)
        return self.to_empty(device=device)


def test_modules_return_to_their_device() -> None:
    elsewhere, there = RecordedLinear(), RecordedLinear().to_empty(device="meta")
    with pytest.raises(KeyError), on_device([elsewhere, there], torch.device("meta")):
        assert elsewhere.weight.is_meta
        raise KeyError  # an error does not keep them there
    assert elsewhere.places == ["meta", "cpu"] and elsewhere.weight.device.type == "cpu"
    assert there.places == [] and there.weight.is_meta


def test_of_two_encoders_the_frozen_one_is_not_copied(tiny_model: TextToImage) -> None:
    clip_l = tiny_model.text_encoder
    both = DualTextEncoder(clip_l, copy.deepcopy(clip_l))  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    copied = trainable_copy(both, "clip_l", cpu)
    assert copied.clip_g is both.clip_g and copied.clip_l is not both.clip_l  # type: ignore[union-attr]
    whole = trainable_copy(both, "both", cpu)
    assert whole.clip_g is not both.clip_g and whole.clip_l is not both.clip_l  # type: ignore[union-attr]


def test_what_is_offloaded_is_what_training_does_not_use_all_the_time(tiny_model: TextToImage) -> None:
    assert offloaded_modules(tiny_model, RUN.train) == [tiny_model.vae, tiny_model.text_encoder]
    unet = RUN.replace(train={"train_method": "xattn"}).train  # every iteration encodes prompts
    assert offloaded_modules(tiny_model, unet) == [tiny_model.vae]
