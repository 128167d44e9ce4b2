"""Presets: which one a model gets, what they set, and what overrides them."""

from __future__ import annotations

from typing import Any

import pytest

from advunlearn.config.presets import (
    describe_all_settings,
    describe_main_settings,
    describe_preset_values,
    make_run,
    resolve_preset,
)
from advunlearn.config.training import RunConfig
from advunlearn.errors import AdvUnlearnError

CHURCH = {"concept": "church", "kind": "object"}


@pytest.mark.parametrize(
    ("name", "kind", "is_miniature", "expected"),
    [
        ("auto", "object", True, "miniature"),
        ("auto", "style", True, "miniature"),
        ("auto", "object", False, "object"),
        ("auto", "prompt", False, "object"),
        ("auto", "style", False, "style"),
        ("nudity", "object", True, "nudity"),
    ],
)
def test_auto_follows_the_model_and_the_kind(name: str, kind: str, is_miniature: bool, expected: str) -> None:
    assert resolve_preset(name, kind, is_miniature) == expected


def test_changes_override_a_preset_and_the_preset_the_defaults() -> None:
    run = make_run("style", {"concept": {"concept": "van gogh", "kind": "style"}, "train": {"lr": 5e-6}})
    assert (run.concept.concept, run.train.lr, run.train.iterations, run.train.warmup) == ("van gogh", 5e-6, 1000, 200)
    assert (run.attack.steps, run.attack.unit, run.bank.trajectories) == (30, "absolute", 96)
    assert make_run("custom", {}) == make_run("miniature", {}) == RunConfig()


@pytest.mark.parametrize(
    ("preset", "train", "warmup"),
    [
        ("object", {"iterations": 20}, 4),  # a fifth: the preset's 200 would leave nothing for the attack
        ("object", {"iterations": 200}, 40),
        ("object", {"iterations": 201}, 200),
        ("object", {"iterations": 20, "warmup": 1}, 1),
        ("miniature", {"iterations": 1}, 0),
    ],
)
def test_a_short_run_has_a_short_warmup(preset: str, train: dict[str, Any], warmup: int) -> None:
    assert make_run(preset, {"concept": CHURCH, "train": train}).train.warmup == warmup


def test_a_preset_names_a_concept_only_where_none_is_given() -> None:
    assert make_run("nudity", {"concept": {"concept": " ", "kind": "prompt"}}).concept.concept == "nudity"
    assert make_run("nudity", {"concept": {"concept": "Nudity", "kind": "object"}}).concept.prompts == ("nudity",)
    with pytest.raises(AdvUnlearnError, match="preset nudity is for the concept nudity, but concept is 'van gogh'"):
        make_run("nudity", {"concept": {"concept": "van gogh", "kind": "object"}})
    with pytest.raises(AdvUnlearnError, match="concept is empty"):
        make_run("object", {"concept": {"concept": "", "kind": "object"}})


@pytest.mark.parametrize(("preset", "kind"), [("style", "object"), ("object", "style"), ("nudity", "style")])
def test_a_preset_for_another_kind_is_refused(preset: str, kind: str) -> None:
    concept = {"concept": "nudity" if preset == "nudity" else "van gogh", "kind": kind}
    with pytest.raises(AdvUnlearnError, match=f"preset {preset} is for the kind .*, but kind is {kind}"):
        make_run(preset, {"concept": concept})


def test_settings_are_described_with_the_digits_that_they_need() -> None:
    lines = describe_all_settings(make_run("object", {"concept": CHURCH, "train": {"lr": 5e-6}})).splitlines()
    assert [line.split(":")[0] for line in lines] == ["concept", "train", "attack", "bank"]
    assert "lr 5e-06," in lines[1] and "checkpointing false" in lines[1] and "quirks" not in lines[1]
    assert "step_size 0.001," in lines[2]


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, "retain_batch 5, retain_weight 0.5, warmup 200, attack steps 30, restarts 1"),
        ({"mode": "fast"}, "retain_batch 5, retain_weight 0.5, warmup 200, attack steps 1, restarts 1"),
        ({"mode": "esd"}, ""),
    ],
)
def test_the_main_settings_are_those_that_the_mode_uses(train: dict[str, Any], expected: str) -> None:
    run = make_run("object", {"concept": CHURCH, "train": train})
    start = f"mode {run.train.mode}, 1000 iterations, lr 1e-05, batch 1"
    assert describe_main_settings(run) == ", ".join(filter(None, [start, expected]))


def test_the_values_of_a_setting_are_grouped_by_preset() -> None:
    assert describe_preset_values("train", "lr") == "miniature 0.0002; quick 0.0004; nudity, style, object 1e-05"
    assert describe_preset_values("train", "retain_weight") == "miniature, quick 2; nudity 0.3; style, object 0.5"
    assert describe_preset_values("bank", "trajectories") == "miniature, nudity, style, object 96; quick 8"
    assert describe_preset_values("bank", "draws_per_sample") == "40"
