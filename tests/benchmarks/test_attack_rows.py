"""The rows of the benchmarks that attack given encoders, and of those that compare searches."""

from __future__ import annotations

import argparse
import importlib
import pathlib
from typing import Any

import pytest

from advunlearn.formats.text_encoders import save_encoder
from advunlearn.models.loading import TextToImage

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_an_encoder_is_named_by_its_mode_and_weights_and_must_be_of_the_concept(
    benchmark: Any, model: TextToImage, tmp_path: pathlib.Path
) -> None:
    load_encoders = benchmark("given_encoders").load_encoders
    recipe = {"concept": {"concept": "church"}, "train": {"mode": "esd"}}
    paths = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
    save_encoder(paths[0], model.text_encoder, {"advunlearn.recipe": recipe})
    save_encoder(paths[1], model.text_encoder, {})
    (first, _), (second, _) = load_encoders(paths, model, "church")
    assert (first["mode"], second["mode"]) == ("esd", "unknown") and first["sha256"] == second["sha256"]
    with pytest.raises(SystemExit, match="was erased of 'church'; give encoders of 'dog'"):
        next(load_encoders(paths, model, "dog"))


def test_a_run_needs_an_encoder(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = benchmark("given_encoders").parse_arguments
    monkeypatch.setattr("sys.argv", ["lora.py", "run", "church"])
    with pytest.raises(SystemExit):
        parse(argparse.ArgumentParser())
    monkeypatch.setattr("sys.argv", ["lora.py", "table"])
    assert parse(argparse.ArgumentParser()).encoders == []


def test_the_table_of_searches_adds_seeds_and_concepts_by_hand(benchmark: Any) -> None:
    row = {"strength": 0.7, "steps": 40, "way": "default", "worse": 0, "F": 400}
    rows = [
        {**row, "concept": "castle", "seed": 1, "open": 4, "won": [0, 3]},
        {**row, "concept": "castle", "seed": 2, "open": 2, "won": [], "worse": 1},
        {**row, "concept": "church", "seed": 1, "open": 2, "won": [5]},
        {**row, "concept": "castle", "seed": 1, "open": 4, "won": [1], "steps": 100},
    ]
    lines = benchmark("search_settings").table(rows).splitlines()
    assert lines[2:] == [
        "| 0.7 | 40 | default | 2/4, 0/2 | 1/2 | 3/8 | 1 | 150 |",
        "| 0.7 | 100 | default | 1/4 | - | 1/4 | 0 | 100 |",
    ]
