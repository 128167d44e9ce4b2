"""Settings from a file."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, get_type_hints

import pytest
import torch
from safetensors.torch import save_file

from advunlearn.cli import config_file as configfile
from advunlearn.cli.flags import run_settings, settings
from advunlearn.cli.main import build_parser, main
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.base import choices
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.io import ModelConfig, OutputConfig, RetainConfig
from advunlearn.config.presets import PRESETS
from advunlearn.config.training import SECTIONS, BankConfig, RunConfig, TrainConfig
from advunlearn.miniature.checkpoint import METADATA

YAML = """
# a comment
retain: mine.txt
checkpoint_every: 7
concept:
  concept: castle
train: {iterations: 40, lr: 1e-3, batch: 4, checkpointing: true}
attack: {step_size: 1}
"""


def parsed(*argv: str) -> Any:
    parser = build_parser()
    return configfile.apply_config(parser.parse_args(argv), parser, argv)


def written(folder: pathlib.Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_flags_win_over_a_file_and_what_neither_says_is_the_default(tmp_path: pathlib.Path) -> None:
    args = parsed("train", "--config", written(tmp_path, YAML), "--batch", "2", "--attack-tokens", "3")
    train = TrainConfig(iterations=40, lr=1e-3, batch=2, checkpointing=True)
    assert settings(TrainConfig, args) == train and isinstance(settings(AdversaryConfig, args).step_size, float)
    assert settings(AdversaryConfig, args) == AdversaryConfig(step_size=1.0, tokens=3)
    assert settings(ConceptConfig, args) == ConceptConfig(concept="castle")
    assert settings(RetainConfig, args) == RetainConfig(retain="mine.txt")
    assert settings(OutputConfig, args) == OutputConfig(checkpoint_every=7)
    assert settings(BankConfig, args) == BankConfig()
    assert settings(TrainConfig, parsed("estimate", "--config", str(tmp_path / "run.yaml"))).iterations == 40


def test_a_preset_lies_under_what_stands_beside_it(tmp_path: pathlib.Path) -> None:
    file = written(tmp_path, json.dumps({"preset": "nudity", "train": {"lr": 0.5, "num_layers": 2}}), "a.json")
    args = parsed("train", "--config", file, "--num-layers", "3")
    published = PRESETS["nudity"]["train"]
    assert settings(TrainConfig, args) == TrainConfig(**{**published, "lr": 0.5, "num_layers": 3})
    assert settings(ConceptConfig, args).concept == "nudity"
    # A preset among the flags is over the file, as all flags are.
    args = parsed("train", "--config", file, "--preset", "object", "--num-layers", "3")
    assert settings(TrainConfig, args) == TrainConfig(**{**PRESETS["object"]["train"], "num_layers": 3})


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        ((), "miniature"),
        (("--kind", "style"), "miniature"),
        (("--model", "sd15.safetensors"), "object"),
        (("--model", "sdxl_folder", "--kind", "style"), "style"),
        (("--model", "sd15.safetensors", "--kind", "prompt", "--concept", "nudity"), "object"),
        (("--model", "sd15.safetensors", "--preset", "custom"), "custom"),
    ],
)
def test_auto_is_the_preset_of_the_model_and_of_the_kind(flags: tuple[str, ...], preset: str) -> None:
    args = parsed("train", *flags)
    assert args.preset == preset
    assert settings(TrainConfig, args) == TrainConfig(**PRESETS[preset].get("train", {}))
    kind = flags[flags.index("--kind") + 1] if "--kind" in flags else "object"
    assert settings(ConceptConfig, args).kind == kind


def test_auto_lies_under_a_file_and_under_flags(tmp_path: pathlib.Path) -> None:
    file = written(tmp_path, json.dumps({"model": "sd15.safetensors", "train": {"lr": 3e-5}}), "a.json")
    train = settings(TrainConfig, parsed("train", "--config", file, "--batch", "2"))
    assert (train.lr, train.batch, train.iterations, train.warmup) == (3e-5, 2, 1000, 200)


@pytest.mark.parametrize(
    ("flags", "warmup"),
    [
        (("--iterations", "20"), 4),  # a fifth: the default of 20 would leave none to attack in
        (("--iterations", "21"), 20),
        (("--iterations", "150", "--model", "sd15.safetensors"), 30),
        (("--iterations", "20", "--warmup", "3"), 3),
    ],
)
def test_a_short_run_has_a_short_warmup(flags: tuple[str, ...], warmup: int) -> None:
    assert settings(TrainConfig, parsed("train", *flags)).warmup == warmup


def test_the_miniatures_checkpoint_is_recognised(tmp_path: pathlib.Path) -> None:
    for title, expected in (("AdvUnlearn miniature", True), ("another", False)):
        path = tmp_path / f"{title}.safetensors"
        save_file({"x": torch.zeros(1)}, path, {"modelspec.title": title})
        assert configfile.is_miniature(str(path)) is expected
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    assert not configfile.is_miniature(str(tmp_path / "broken.safetensors"))
    assert METADATA["modelspec.title"] == configfile.MINIATURE_TITLE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {iteratons: 4}", "train.iteratons is no setting; the nearest is train.iterations"),
        ("lr: 0.1", "lr is no setting; the nearest is train.lr"),
        ("atack: {steps: 4}", "atack is no setting; the nearest is attack\n"),
        ("3: 4", "3 is no setting; the nearest is"),
        ("train: {iterations: 4.0}", "train.iterations is 4.0; it must be a whole number"),
        ("train: {iterations: true}", "train.iterations is True; it must be a whole number"),
        ("train: {lr: fast}", "train.lr is 'fast'; it must be a number"),
        ("train: {lr: '0.1'}", "train.lr is '0.1'; it must be a number"),
        ("train: {checkpointing: 1}", "train.checkpointing is 1; it must be true or false"),
        ("concept: {concept: [a, b]}", "concept.concept is a list; it must be text"),
        ("concept: {concept: no}", "concept.concept is False; it must be text"),
        ("train: {mode: }", "train.mode is empty; it must be text"),
        ("train: {mode: magic}", "mode is 'magic'; it must be one of advunlearn"),
        ("train: {iterations: 0}", "iterations is 0; it must be between 1"),
        ("concept: church", "concept is 'church'; it must be a section of settings, such as concept.concept"),
        ("preset: nudty", "preset is 'nudty'; it must be one of custom, miniature, quick, nudity"),
        ("preset: [nudity]", "preset is a list; it must be one of custom"),
        ("- a\n- b", "holds a list; write settings"),
        ("", "holds empty; write settings"),
        ("a: [", "cannot be read as YAML"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_what_a_file_must_not_say(
    text: str, says: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["train", "--config", written(tmp_path, text), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("run.json", "{", "cannot be read as JSON"),
        ("run.json", "\xff", "cannot be read as JSON"),
        ("run.toml", "", "give a file that ends in .json, .yaml or .yml"),
        ("run.yaml", None, "no such file; give a settings file"),
    ],
)
def test_what_a_file_must_be(
    name: str, text: str | None, says: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert main(["train", "--config", str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err


def other(config: type, field: dataclasses.Field[Any]) -> Any:
    """Return a value that a setting may have and that is not its default."""
    kind = get_type_hints(config)[field.name]
    if field.name == "position":
        return "add"  # the only one in the conditioning's space
    if field.name == "quirks":
        return "words_for_tokens"
    if options := choices(config, field.name):
        return options[1]
    if kind is str:
        return "another"
    if kind is bool:
        return not field.default
    return (field.default // 2 or field.default + 1) if kind is int else (field.default / 2 or 0.25)


def test_a_saved_file_holds_every_setting(tmp_path: pathlib.Path) -> None:
    def changed(config: type) -> Any:
        return config(**{field.name: other(config, field) for field in dataclasses.fields(config)})

    run = RunConfig(**{name: changed(config) for name, config in SECTIONS.items()})
    top = [changed(config) for config in configfile.TOP_LEVEL]
    content = configfile.make_content(run, top, {"command": "advunlearn train"})
    args = parsed("train", "--config", written(tmp_path, json.dumps(content), "config.json"))
    assert run_settings(args) == run
    assert [settings(config, args) for config in configfile.TOP_LEVEL] == top


def test_names_of_earlier_versions_are_read(tmp_path: pathlib.Path) -> None:
    old = {
        "train": {"layers": 2, "retain_by": "step"},
        "attack": {"every": 3, "redraw": "iteration", "words": 2, "word_steps": 5, "word_share": 0.25},
        "bank": {"reuse": 7.0},
    }
    args = parsed("train", "--config", written(tmp_path, json.dumps(old), "config.json"))
    assert settings(TrainConfig, args) == TrainConfig(num_layers=2, retain_mode="step")
    inversion = {"inversion_tokens": 2, "inversion_steps": 5, "inversion_share": 0.25}
    assert settings(AdversaryConfig, args) == AdversaryConfig(attack_interval=3, resample="iteration", **inversion)
    assert settings(BankConfig, args) == BankConfig(draws_per_sample=7.0)


def test_paths_are_saved_whole(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("mine.txt").write_text("a dog\n")
    pathlib.Path("miniature").mkdir()
    saved = configfile.make_content(RunConfig(), (ModelConfig(), RetainConfig(retain="mine.txt")), {})
    assert (saved["retain"], saved["model"]) == (str(tmp_path / "mine.txt"), "miniature")
