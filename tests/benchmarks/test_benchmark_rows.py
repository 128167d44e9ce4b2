"""The rows of the benchmarks that measure models part by part, and the models they share."""

from __future__ import annotations

import importlib
import pathlib
from types import ModuleType
from typing import Any

import pytest
import torch

from advunlearn import load
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def import_module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return import_module


def count(success: int) -> dict[str, int]:
    """Return a count of 10 cases."""
    return {"success": success, "total": 10}


def test_parts_are_merged_by_model_and_typed_text_is_the_better_attack_of_each_seed(benchmark: Any) -> None:
    measured = benchmark("measured")
    rows = []
    for seed, (synonyms, discrete) in enumerate([(3, 1), (0, 2)]):
        plain = {"asr": {"clean": count(1), "synonyms": count(synonyms)}, "utility": {"retained_accuracy": count(9)}}
        rows += [{"seed": seed, "part": "plain", **plain}]
        rows += [{"seed": seed, "part": "unlearndiffatk", "asr": {"unlearndiffatk": count(discrete)}}]
    models = list(measured.merge_parts(rows, ("seed",)).values())
    attacks = ("clean", "synonyms", "unlearndiffatk")
    cells = ["2/20 (1 to 1)", "3/20 (0 to 3)", "3/20 (1 to 2)", "5/20 (2 to 3)"]  # 3 + 2, not 3 synonyms or 3 discrete
    assert measured.format_cells(models, attacks, ()) == cells
    assert measured.format_titles(attacks, ()) == ["plain", "synonyms", "UnlearnDiffAtk", "**typed text**"]


@pytest.mark.slow
def test_a_shared_model_is_read_again_and_does_not_depend_on_those_before(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    trained = benchmark("trained")
    bank = BankConfig(trajectories=2, retain_trajectories=2, sampling_steps=2, draws_per_sample=0.5)  # soon replaced
    size = {"iterations": 2, "batch": 2}
    first = RunConfig(bank=bank, train=TrainConfig(mode="esd", **size))
    second = RunConfig(bank=bank, train=TrainConfig(mode="esd_unet", lr=1e-2, **size))
    monkeypatch.setattr(trained, "MODELS", {"first": first, "second": second})
    model, concept = load("miniature"), trained.make_concept("church")

    def get(folder: str, name: str) -> tuple[dict[str, torch.Tensor], float]:
        monkeypatch.setattr(trained, "FOLDER", tmp_path / folder)
        subject, seconds = trained.TrainedModels(model, concept, 0).get(name)
        return subject.denoiser.unet.state_dict(), seconds

    get("both", "first")
    after_first, seconds = get("both", "second")
    alone, _ = get("alone", "second")
    assert all(torch.equal(after_first[name], tensor) for name, tensor in alone.items())
    assert any(not torch.equal(alone[name], tensor) for name, tensor in model.denoiser.unet.state_dict().items())
    monkeypatch.setattr(trained, "train", None)  # training again would fail
    assert get("both", "second")[1] == seconds
