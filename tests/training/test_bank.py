"""The trajectory bank's rotation: chunks smaller than the bank, and the oldest trajectories first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig
from advunlearn.models.loading import TextToImage
from advunlearn.training.bank import SampleSource, TrajectoryBank, make_banks

# 5 trajectories of 2 steps, 2 sampled at a time: 2 trajectories of 2 samples last for 2 * 2 * 1.5 = 6 draws.
BANK = BankConfig(trajectories=5, retain_trajectories=5, sampling_steps=2, draws_per_sample=1.5, dtype="float32")
PROMPTS = ["a dog", "a castle", "a tree"]


@pytest.fixture(autouse=True)
def small_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrajectoryBank, "chunk", 2)


def make_bank(model: TextToImage, state: dict[str, dict[str, object]] | None = None) -> SampleSource:
    """Return the bank of the retained prompts."""
    run = RunConfig(concept=ConceptConfig(concept="church"), bank=BANK)
    bank = make_banks(model, run, PROMPTS, torch.Generator().manual_seed(0), state=state).retain
    assert bank is not None
    return bank


def replaced_rows(bank: SampleSource) -> list[int]:
    """Draw as often as two trajectories last, refresh, and return the rows that changed."""
    before = bank.tensors()["x_t"].clone()
    bank.draw(6)
    bank.refresh()
    return (bank.tensors()["x_t"] != before).flatten(1).any(1).nonzero().flatten().tolist()


def test_the_oldest_trajectories_are_replaced_first(tiny_model: TextToImage) -> None:
    bank = make_bank(tiny_model)
    assert bank.tensors()["prompt"].tolist() == [0, 1, 2, 0, 1]  # the prompts in turn, filled in chunks of 2, 2 and 1
    assert [replaced_rows(bank) for _ in range(4)] == [[0, 1], [2, 3], [0, 4], [1, 2]]
    # The prompts went on in turn: 2 0 | 1 2 | 0 1 | 2 0 in the rows above, where row 4 was before row 0.
    assert bank.tensors()["prompt"].tolist() == [1, 2, 0, 2, 0]
    assert bank.counters() == {"draws": 0, "next_to_replace": 3, "n_sampled": 5 + 4 * 2}


def test_a_restored_bank_replaces_what_the_saved_one_would_have(tiny_model: TextToImage) -> None:
    bank = make_bank(tiny_model)
    assert replaced_rows(bank) == [0, 1]
    saved: dict[str, object] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in bank.tensors().items()}
    other = make_bank(tiny_model, {"concept": saved | bank.counters(), "retain": saved | bank.counters()})
    other.generator.set_state(bank.generator.get_state())
    for _ in range(3):
        assert replaced_rows(other) == replaced_rows(bank)
        assert torch.equal(other.tensors()["x_t"], bank.tensors()["x_t"])
