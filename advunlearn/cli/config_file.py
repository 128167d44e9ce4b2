"""Settings from a YAML or JSON file. Flags go over them, and both end in the same dataclasses of `config`.

A file has the run's own settings on top and a section for each of the others:

    model: miniature
    retain: prompts.txt
    concept: {concept: church}
    train: {iterations: 400, lr: 1e-4}
    attack: {steps: 8}
    bank: {draws_per_sample: 2}

`config.json` in a run's folder is such a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_type_hints

from ..config.adversary import AdversaryConfig
from ..config.base import choices
from ..config.concept import ConceptConfig
from ..config.presets import CUSTOM, PRESETS, bundle
from ..config.training import BankConfig, RunConfig, TrainConfig
from ..errors import AdvUnlearnError

NAME = "config.json"  # in a run's folder
PRESET, ABOUT = "preset", "about"  # keys that are no settings: other settings by name; what a saved file says beside
SECTIONS: dict[str, type] = {
    "concept": ConceptConfig,
    "train": TrainConfig,
    "attack": AdversaryConfig,
    "bank": BankConfig,
}
KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
# YAML 1.1, which PyYAML reads, takes 1e-4 for text; JSON and everybody else takes it for a number.
EXPONENT = r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"


def known() -> dict[str, tuple[type, str]]:
    """Return where each key belongs: "train.lr" -> (TrainConfig, "lr")."""
    own = {field.name: (RunConfig, field.name) for field in dataclasses.fields(RunConfig)}
    sections = {
        f"{section}.{field.name}": (config, field.name)
        for section, config in SECTIONS.items()
        for field in dataclasses.fields(config)
    }
    return {**own, **sections}


def nearest(key: str) -> str:
    """Return the known key that is most like this one, as a whole or by its last part."""

    def likeness(other: str) -> float:
        parts = ((key, other), (key.rpartition(".")[2], other.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in parts)

    return max([*known(), *SECTIONS, PRESET], key=likeness)


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """Return what a file of settings says, by the names that parsed flags have.

    Raises AdvUnlearnError for a file that cannot be read, an unknown key, and a value of another type.
    """
    content = _content(pathlib.Path(path))
    values = of_preset(_preset(content.get(PRESET, CUSTOM), str(path)))
    keys = known()
    for key, value in _flat(content, str(path)):
        if key not in keys:
            raise AdvUnlearnError(f"{path}: {key} is no setting; the nearest is {nearest(key)}")
        config, name = keys[key]
        values[dest(config, name)] = _typed(config, name, value, f"{path}: {key}")
    return values


def of_preset(name: str) -> dict[str, Any]:
    """Return what a preset says, by the names that parsed flags have."""
    return {f"{config}.{key}": value for config, values in PRESETS[name].items() for key, value in values.items()}


def dest(config: type, name: str) -> str:
    """Return the name that a setting has among parsed flags."""
    return f"{config.__name__}.{name}"


def resolved(
    args: argparse.Namespace, parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line again: a training run's preset goes over its file's settings, its flags go over both.

    A run that goes on takes the settings in its folder unless it is given a file.

    Args:
        args: what `parser` made of `argv`. Commands that have no `config` are left alone; those that have name their
            own parser as `parser`.
    """
    if (named := getattr(args, "bundle", "")) and dest(ConceptConfig, "concept") in vars(args):
        raise AdvUnlearnError(f"--concept and --bundle {named} both name what to erase; give one of them")
    if not hasattr(args, "config"):
        return args
    file = args.config
    if file is None and getattr(args, "resume", False):
        kept = pathlib.Path(args.out) / NAME
        file = kept if kept.is_file() else None
    concepts = {dest(ConceptConfig, name): value for name, value in bundle(args.bundle).items()}
    args.parser.set_defaults(**{**(read(file) if file else {}), **of_preset(args.preset), **concepts})
    return parser.parse_args(argv)


def saved(run: RunConfig, configs: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a file that `read` makes the same settings of; paths are absolute."""
    paths = {name: _absolute(getattr(run, name)) for name in ("model", "retain")}
    return {**run.to_dict(), **paths, **configs, ABOUT: dict(about)}


def _absolute(name: str) -> str:
    """Return the whole path of a file or folder that is there; other names stay."""
    path = pathlib.Path(name)
    return str(path.resolve()) if name not in ("", RunConfig().model) and path.exists() else name


def _content(path: pathlib.Path) -> dict[Any, Any]:
    """Return what is written in a file."""
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise AdvUnlearnError(f"--config {str(path)!r}: give a file that ends in .json, .yaml or .yml")
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give a file of settings, for example a run's {NAME}")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml

            try:
                content = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(error) from error
    except ValueError as error:  # what is not UTF-8 or JSON is a ValueError too
        raise AdvUnlearnError(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(content, dict):
        raise AdvUnlearnError(f"{path} holds {_kind(content)}; write settings: a key and a value each")
    return content


def _flat(content: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield "section.key" and value."""
    for key, value in content.items():
        if key in (PRESET, ABOUT):
            continue
        if key not in SECTIONS:
            yield str(key), value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            first = dataclasses.fields(SECTIONS[key])[0].name
            raise AdvUnlearnError(
                f"{path}: {key} is {_kind(value)}; it must be a section of settings, as {key}.{first}"
            )


def _typed(config: type, name: str, value: Any, where: str) -> Any:
    """Return a value of the type that the setting has."""
    kind = str if choices(config, name) else get_type_hints(config)[name]
    if kind is float and (type(value) is int or (isinstance(value, str) and re.fullmatch(EXPONENT, value))):
        return float(value)
    if type(value) is not kind:
        raise AdvUnlearnError(f"{where} is {_kind(value)}; it must be {KINDS[kind]}")
    return value


def _preset(name: Any, path: str) -> str:
    if not isinstance(name, str) or name not in PRESETS:
        raise AdvUnlearnError(f"{path}: {PRESET} is {_kind(name)}; it must be one of {', '.join(PRESETS)}")
    return name


def _kind(value: Any) -> str:
    """Return a value in words."""
    if isinstance(value, Mapping | list):
        return "a section" if isinstance(value, Mapping) else "a list"
    return "empty" if value is None else repr(value)
