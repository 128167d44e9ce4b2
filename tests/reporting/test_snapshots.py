"""Intermediate encoders and their quick measure."""

from __future__ import annotations

import copy
import json
import pathlib
from typing import Any

import pytest
import torch

from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.models.loading import TextToImage
from advunlearn.reporting.snapshots import RECORD, Snapshot, Snapshots, choose_best_snapshot, measure_change
from advunlearn.reporting.training_samples import Samples
from advunlearn.training.events import Progress


def test_a_change_is_the_distance_relative_to_the_original() -> None:
    original = torch.tensor([3.0, 4.0, 0.0, 0.0, 6.0, 8.0]).view(3, 2, 1, 1)
    original[1] = torch.tensor([0.0, 2.0]).view(2, 1, 1)
    latents = original.clone()
    latents[1, 0] = 1.0  # at a distance of 1 from one of length 2
    latents[2] = 0.0  # as far away as the original is long
    assert measure_change(latents, original).tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_the_best_has_changed_the_concept_and_little_else_and_comes_first() -> None:
    rows = [
        Snapshot(10, "a", 0.5, 0.0),
        Snapshot(20, "b", 1.0, 0.25),
        Snapshot(30, "c", 1.25, 0.5),
        Snapshot(40, "d", 1.3, 1.2),
    ]
    assert choose_best_snapshot(rows).name == "b"  # b and c both have 0.75


@pytest.fixture
def damaged(tiny_model: TextToImage) -> Any:
    """An encoder that differs from the original one."""
    encoder = copy.deepcopy(tiny_model.text_encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    return encoder


def test_encoders_are_kept_at_intervals_measured_and_remembered_by_a_resumed_run(
    tiny_model: TextToImage, damaged: Any, tmp_path: pathlib.Path
) -> None:
    samples = Samples(tiny_model, ["a church", "a dog", "a cat"], EvaluateConfig(sampling_steps=1), count=1)
    saved: list[int] = []

    def save(encoder: Any, iteration: int) -> str:
        saved.append(iteration)
        return f"at-{iteration}"

    kept = Snapshots(samples, 2, save, tmp_path)
    for iteration, encoder in [(1, damaged), (2, tiny_model.text_encoder), (3, damaged), (4, damaged), (6, damaged)]:
        kept(Progress("train", iteration, 6, encoder=encoder, denoiser=tiny_model.denoiser))
    assert saved == [2, 4]  # the last one is the run's own result
    first, second = kept.taken
    assert (first.concept_change, first.retained_change) == (0.0, 0.0)
    assert second.concept_change > 0 and second.retained_change > 0
    lines = kept.describe().splitlines()
    assert lines[0] == "at 2: images of the concept changed by 0%, retained ones by 0%: at-2"
    assert lines[-1].startswith("best by this quick measure") and choose_best_snapshot(kept.taken).name in lines[-1]
    assert len(json.loads((tmp_path / RECORD).read_text())) == 2
    assert Snapshots(samples, 2, save, tmp_path, resume=True).taken == kept.taken
    assert Snapshots(samples, 2, save, tmp_path).taken == []  # a new run does not take over the old ones
