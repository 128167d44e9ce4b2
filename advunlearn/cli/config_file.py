"""Settings from a YAML or JSON file; flags override them, and both make the same dataclasses of `config`.

The settings of `config.io` stand at the top of the file, all others in sections:

    model: miniature
    retain: prompts.txt
    concept: {concept: church}
    train: {iterations: 400, lr: 1e-4}
    attack: {steps: 8}
    bank: {draws_per_sample: 2}

The `config.json` of a run is such a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import pathlib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_type_hints

from ..config.base import Validated, choices
from ..config.concept import ConceptConfig
from ..config.io import ModelConfig, OutputConfig, RetainConfig
from ..config.presets import AUTO, CUSTOM, PRESETS, resolve_preset, shorten_warmup
from ..config.renamed import current_name
from ..config.training import SECTIONS, RunConfig, TrainConfig
from ..errors import AdvUnlearnError

MINIATURE_TITLE = "AdvUnlearn miniature"  # in the metadata of its checkpoint
NAME = "config.json"  # in a run folder
PRESET = "preset"  # key of a file: the preset below its settings
ABOUT = "about"  # key of a saved file: facts about the run, not settings
TOP_LEVEL = (ModelConfig, RetainConfig, OutputConfig)  # settings without a section
TYPE_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
MOST_COMPARED = 100  # characters of an unknown key; the time to compare grows with their square
# PyYAML reads YAML 1.1, in which 1e-4 is text; in JSON and in YAML 1.2 it is a number.
EXPONENT = r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"


def known_settings() -> dict[str, tuple[type, str]]:
    """Return the class and field of every key: "train.lr" -> (TrainConfig, "lr")."""
    top = {field.name: (config, field.name) for config in TOP_LEVEL for field in dataclasses.fields(config)}
    sections = {
        f"{section}.{field.name}": (config, field.name)
        for section, config in SECTIONS.items()
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
    }
    return {**top, **sections}


def nearest_key(key: str) -> str:
    """Return the known key most similar to this one, compared in full or by its last part."""
    key = key[-MOST_COMPARED:]

    def similarity(other: str) -> float:
        pairs = ((key, other), (key.rpartition(".")[2], other.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return max([*known_settings(), *SECTIONS, PRESET], key=similarity)


def read_settings(path: str | pathlib.Path) -> dict[str, object]:
    """Read a settings file; the keys of the result are the destinations of the flags.

    Names that settings had in earlier versions are accepted.
    Raises AdvUnlearnError for a file that cannot be read, an unknown key, and a value of the wrong type.
    """
    content = _read_content(pathlib.Path(path))
    values = preset_settings(_check_preset(content.get(PRESET, CUSTOM), str(path)))
    known = known_settings()
    for key, value in _flatten(content, str(path)):
        if key not in known:
            raise AdvUnlearnError(f"{path}: {key} is no setting; the nearest is {nearest_key(key)}")
        config, name = known[key]
        values[flag_dest(config, name)] = _check_type(config, name, value, f"{path}: {key}")
    return values


def preset_settings(name: str) -> dict[str, object]:
    """Return the settings of a preset; the keys are the destinations of the flags."""
    return {
        flag_dest(SECTIONS[section], key): value
        for section, values in PRESETS[name].items()
        for key, value in values.items()
    }


def flag_dest(config: type, name: str) -> str:
    """Return the attribute of parsed flags that holds a setting."""
    return f"{config.__name__}.{name}"


def apply_config(
    args: argparse.Namespace, parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line again on top of its settings file and its preset: flags override presets, presets files.

    With --resume and no file, the settings come from the run folder.

    Args:
        args: the result of a first parse of `argv` by `parser`. A command without --config is returned as it is; one
            with --config has its own subparser as `args.parser`.
    """
    if not hasattr(args, "config"):
        return args
    file = args.config
    if file is None and getattr(args, "resume", False):
        saved = pathlib.Path(args.out) / NAME
        file = saved if saved.is_file() else None
    saved_settings = read_settings(file) if file else {}
    defaults = saved_settings | preset_settings(args.preset) if args.preset != AUTO else saved_settings
    if args.preset == AUTO:
        values = saved_settings | vars(args)
        model = str(values.get(flag_dest(ModelConfig, "model"), ModelConfig().model))
        kind = str(values.get(flag_dest(ConceptConfig, "kind"), ConceptConfig().kind))
        preset = resolve_preset(AUTO, kind, is_miniature(model))
        chosen = preset_settings(preset)
        chosen.pop(flag_dest(ConceptConfig, "kind"), None)  # a prompt stays one
        defaults = chosen | saved_settings
        args.parser.set_defaults(preset=preset)
    args.parser.set_defaults(**{**defaults, **_shorter_warmup(args, defaults)})
    return parser.parse_args(argv)


def _shorter_warmup(args: argparse.Namespace, defaults: Mapping[str, object]) -> dict[str, object]:
    """Return a shorter warm-up if only the iterations are given, and the default would leave none for the attack."""
    iterations, warmup = (flag_dest(TrainConfig, name) for name in ("iterations", "warmup"))
    given = vars(args)
    if iterations not in given or warmup in given:
        return {}
    default = defaults.get(warmup, TrainConfig().warmup)
    return {warmup: shorten_warmup(given[iterations], default)}  # type: ignore[arg-type]


def is_miniature(model: str) -> bool:
    """Return whether a model is the miniature: the shipped one, or the checkpoint of `advunlearn miniature`."""
    if model == ModelConfig().model:
        return True
    path = pathlib.Path(model)
    if not path.is_file() or path.suffix.lower() not in (".safetensors", ".sft"):
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return (file.metadata() or {}).get("modelspec.title") == MINIATURE_TITLE
    except (SafetensorError, OSError):  # loading the model will say what is wrong with the file
        return False


def make_content(run: RunConfig, top: Sequence[Validated], about: Mapping[str, object]) -> dict[str, object]:
    """Return the content of a file from which `read_settings` reads the same settings; its paths are absolute."""
    values: dict[str, object] = {}
    for config in top:
        values |= config.to_dict()
    for name in ("model", "retain"):
        values[name] = _absolute_path(str(values[name]))
    return {**values, **run.to_dict(), ABOUT: dict(about)}


def _absolute_path(name: str) -> str:
    """Return the absolute path of an existing file or folder, and any other name unchanged."""
    path = pathlib.Path(name)
    return str(path.resolve()) if name not in ("", ModelConfig().model) and path.exists() else name


def _read_content(path: pathlib.Path) -> dict[object, object]:
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise AdvUnlearnError(f"--config {str(path)!r}: give a file that ends in .json, .yaml or .yml")
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give a settings file, for example the {NAME} of a run")
    try:
        content = _parse(path.read_text(encoding="utf-8-sig"), path.suffix)
        _require_printable(content, set())
    except RecursionError as error:
        raise AdvUnlearnError(f"{path} is nested too deeply; settings are at most one section deep") from error
    except ValueError as error:  # also raised for text that is not UTF-8
        raise AdvUnlearnError(f"{path} cannot be read as {path.suffix[1:].upper()}: {str(error)[:300]}") from error
    if not isinstance(content, dict):
        raise AdvUnlearnError(f"{path} holds {_describe(content)}; write settings, each as a key and a value")
    return content


def _parse(text: str, suffix: str) -> object:
    if suffix == ".json":
        return json.loads(text, object_pairs_hook=_require_single_keys)
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML whose mappings have each key once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            _require_single_keys((self.construct_object(key, deep=True), None) for key, _ in node.value)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _require_single_keys(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a mapping of keys and values. Raises ValueError for a key that occurs twice."""
    values: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, Hashable):
            raise ValueError(f"{str(key)[:100]!r} is no name of a setting")
        if key in values:
            raise ValueError(f"{str(key)[:100]!r} occurs twice; keep one of them")
        values[key] = value
    return values


def _require_printable(value: object, seen: set[int]) -> None:
    """Raise ValueError for text with half of a surrogate pair, which no file and no terminal can show."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list) and id(value) not in seen:  # YAML may name one value in several places
        seen.add(id(value))
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _require_printable(part, seen)


def _flatten(content: Mapping[object, object], path: str) -> Iterator[tuple[str, object]]:
    """Yield "section.key", by its current name, and the value."""
    for key, value in content.items():
        if key in (PRESET, ABOUT):
            continue
        if key not in SECTIONS:
            yield str(key), value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{current_name(key, str(name))}", inner) for name, inner in value.items())
        else:
            first = dataclasses.fields(SECTIONS[key])[0].name  # type: ignore[arg-type]
            raise AdvUnlearnError(
                f"{path}: {key} is {_describe(value)}; it must be a section of settings, such as {key}.{first}"
            )


def _check_type(config: type, name: str, value: object, where: str) -> object:
    """Return a value as the type of its setting. Raises AdvUnlearnError for a value of another type."""
    kind = str if choices(config, name) else get_type_hints(config)[name]
    if kind is float and (type(value) is int or (isinstance(value, str) and re.fullmatch(EXPONENT, value))):
        try:
            return float(value)
        except OverflowError as error:
            raise AdvUnlearnError(f"{where} is a number of {len(str(value))} digits, which is too large") from error
    if type(value) is not kind:
        raise AdvUnlearnError(f"{where} is {_describe(value)}; it must be {TYPE_NAMES[kind]}")
    return value


def _check_preset(name: object, path: str) -> str:
    if not isinstance(name, str) or name not in PRESETS:
        raise AdvUnlearnError(f"{path}: {PRESET} is {_describe(name)}; it must be one of {', '.join(PRESETS)}")
    return name


def _describe(value: object) -> str:
    """Describe a value in words, for error messages."""
    if isinstance(value, Mapping | list):
        return "a section" if isinstance(value, Mapping) else "a list"
    return "empty" if value is None else repr(value)
