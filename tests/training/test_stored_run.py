"""A cancelled run tells its settings, and is resumed with them whatever the caller's own are."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import pytest

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.files import STATE
from advunlearn.models.loading import TextToImage
from advunlearn.training.checkpoint import Checkpoints
from advunlearn.training.stored_run import read_stored_run
from advunlearn.training.trainer import train

RUN = RunConfig(
    train=TrainConfig(mode="esd", iterations=2, batch=1, seed=3),
    attack=AdversaryConfig(restarts=1),
    bank=BankConfig(trajectories=1, sampling_steps=1),
)


@pytest.fixture(scope="module")
def checkpoints(tiny_model: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """The state of a run that was stopped after its first iteration."""
    kept = Checkpoints(tmp_path_factory.mktemp("run"))
    train(tiny_model, RUN, callback=lambda progress: progress.phase == "train", checkpoints=kept)
    return kept


def test_a_stored_run_has_its_settings_and_its_losses(tiny_model: TextToImage, checkpoints: Checkpoints) -> None:
    stored = read_stored_run(checkpoints)
    assert stored is not None and stored.run == RUN and len(stored.history) == 1
    assert stored.resolution == 8 * tiny_model.denoiser.latent_shape[-1]


def test_other_settings_are_named_and_ignored_but_for_those_a_resumed_run_may_change(checkpoints: Checkpoints) -> None:
    stored = read_stored_run(checkpoints)
    assert stored is not None
    given = RUN.replace(train={"iterations": 3, "seed": 9}, bank={"sampling_steps": 7})
    assert stored.resume_with(given) == RUN.replace(train={"iterations": 3})
    assert stored.find_ignored(given, [], stored.resolution) == [
        "seed is 9, stored 3",
        "sampling_steps is 7, stored 1",
    ]
    assert stored.find_ignored(RUN, ["a dog"], 512) == [f"resolution is 512, stored {stored.resolution}"]
    retaining = replace(stored, run=RUN.replace(train={"mode": "advunlearn", "warmup": 0}))
    assert "the retained prompts are 1, stored 0" in retaining.find_ignored(RUN, ["a dog"], stored.resolution)


def test_a_run_resumes_with_the_stored_settings(tiny_model: TextToImage, checkpoints: Checkpoints) -> None:
    stored = read_stored_run(checkpoints)
    assert stored is not None
    run = stored.resume_with(RUN.replace(train={"seed": 9}))
    result = train(tiny_model, run, stored.retain_prompts, checkpoints=checkpoints, resume=True)
    assert result.losses == train(tiny_model, RUN).losses


def test_there_is_no_stored_run_before_the_first_and_a_damaged_one_is_refused(tmp_path: pathlib.Path) -> None:
    assert read_stored_run(Checkpoints(tmp_path)) is None
    (tmp_path / STATE).write_bytes(b"damaged")
    with pytest.raises(AdvUnlearnError, match=r"cannot be read .*; start the run again without resume"):
        read_stored_run(Checkpoints(tmp_path))
