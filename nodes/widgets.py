"""Node inputs made from the library's settings: flags and widgets share the default, the range and the help text."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from comfy_api.latest import io

from ..advunlearn.config.base import choices
from ..advunlearn.config.presets import PRESETS, describe_preset_values, preset_values
from ..advunlearn.config.training import SECTIONS

CATEGORY = "AdvUnlearn"
UNBOUNDED = 2**53 - 1  # the largest integer that JavaScript, and so a widget, keeps exactly
# Values of a widget that leave its setting to the preset; an empty text does so too.
PRESET_CHOICE, PRESET_NUMBER = "preset", -1
SWITCH = {"on": True, "off": False}
COARSEST_STEP = 0.01


def schema(**fields: Any) -> io.Schema:
    """Make a Schema in the pack's category, without the fields that this version of the host does not know.

    The node knows its id, under which it shows its status; a cached one that is no output node shows it again too.
    """
    known = {f.name for f in dataclasses.fields(io.Schema)}
    fields["hidden"] = [io.Hidden.unique_id, *fields.get("hidden", ())]
    fields["has_intermediate_output"] = not fields.get("is_output_node", False)
    return io.Schema(**{"category": CATEGORY, **{k: v for k, v in fields.items() if k in known}})


def advanced(kind: Any, *args: Any, **options: Any) -> Any:
    """Make an input that the page folds away, in the way that this version of the host supports."""
    known = inspect.signature(kind.Input.__init__).parameters
    if "advanced" in known:
        return kind.Input(*args, **options, advanced=True)
    if kind is not io.Combo and "extra_dict" in known:
        options["extra_dict"] = {"advanced": True}
    return kind.Input(*args, **options)


def widget(
    config: type,
    name: str,
    *,
    id: str = "",
    default: Any = None,
    fold: bool = False,
    least: float | None = None,
    help: str = "",
    **more: Any,
) -> Any:
    """Make the input of one setting; `least` raises its minimum, `help` replaces its help text."""
    field, hint = _find_field(config, name), get_type_hints(config)[name]
    options: dict[str, Any] = {"default": field.default if default is None else default}
    options |= {"tooltip": help or field.metadata["help"], **more}
    kind = {int: io.Int, float: io.Float, str: io.String, bool: io.Boolean}.get(hint, io.Combo)
    if kind is io.Combo:
        options["options"] = list(choices(config, name))
    elif hint in (int, float):
        low = field.metadata["low"] if least is None else least
        options |= _number_options(field, hint, low, [field.default])
    make = advanced if fold else lambda kind, *args, **kw: kind.Input(*args, **kw)
    return make(kind, id or name, **options)


def preset_widget(section: str, name: str, *, id: str = "", only: Sequence[str] = ()) -> Any:
    """Make an optional input of one setting that by default leaves it to the preset; `only` limits its choices."""
    config = SECTIONS[section]
    field, hint = _find_field(config, name), get_type_hints(config)[name]
    values = describe_preset_values(section, name)
    options: dict[str, Any] = {"optional": True}
    if hint in (int, float):
        usual = [field.default, *(preset_values(preset, section).get(name, 0) for preset in PRESETS)]
        options |= {"default": hint(PRESET_NUMBER), **_number_options(field, hint, PRESET_NUMBER, usual)}
        return (io.Int if hint is int else io.Float).Input(
            id or name, tooltip=f"{field.metadata['help']}. {PRESET_NUMBER}: the preset's value, {values}", **options
        )
    if hint is str:
        return io.String.Input(id or name, default="", tooltip=field.metadata["help"], **options)
    allowed = list(SWITCH) if hint is bool else list(only or choices(config, name))
    return io.Combo.Input(
        id or name,
        options=[PRESET_CHOICE, *allowed],
        tooltip=f"{field.metadata['help']}. {PRESET_CHOICE}: the preset's value, {values}",
        **options,
    )


def read_changes(config: type, values: Mapping[str, Any], ids: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the settings of a class that the inputs made by `preset_widget` change.

    Args:
        config: the settings class.
        values: the node's inputs.
        ids: the id of each setting whose input has another name.
    """
    hints = get_type_hints(config)
    given = {name: values[id] for name in hints if (id := (ids or {}).get(name, name)) in values}
    changed = {name: value for name, value in given.items() if not _is_left_to_preset(value)}
    return {name: SWITCH[value] if hints[name] is bool else value for name, value in changed.items()}


def _is_left_to_preset(value: Any) -> bool:
    return value in (PRESET_CHOICE, "") if isinstance(value, str) else value < 0


def _find_field(config: type, name: str) -> dataclasses.Field[Any]:
    return next(field for field in dataclasses.fields(config) if field.name == name)


def _number_options(field: dataclasses.Field[Any], hint: type, low: float | None, usual: Sequence[Any]) -> Any:
    """Return the range of a number and, for a float, the step, from which the page takes the digits that it shows."""
    high = field.metadata["high"]
    lowest, highest = -UNBOUNDED if low is None else low, UNBOUNDED if high is None else min(high, UNBOUNDED)
    options: dict[str, Any] = {"min": hint(lowest), "max": hint(highest)}
    if hint is float:
        step = find_step(usual)
        options |= {"step": step, "round": step}
    return options


def find_step(usual: Sequence[float]) -> float:
    """Return a step one digit finer than the smallest usual value, two if that is very small, and at most 0.01."""
    smallest = min((abs(value) for value in usual if value), default=1.0)
    digits = 1 if smallest >= COARSEST_STEP else 2
    return min(COARSEST_STEP, 10.0 ** (math.floor(math.log10(smallest)) - digits))


def seed(config: type) -> Any:
    """Make the input of a seed that stays as it is: by default the page draws a new seed for every run."""
    return widget(config, "seed", control_after_generate=False)


def output(kind: Any, name: str, tooltip: str) -> Any:
    """Make an output with a label. Without `display_name`, v0.3.64 shows its type instead."""
    return kind.Output(name, display_name=name, tooltip=tooltip)


def resolution(tooltip: str) -> Any:
    """Make the input for an image size in pixels."""
    return io.Int.Input(
        "resolution",
        default=0,
        min=0,
        max=2048,
        step=64,
        tooltip=f"{tooltip}, in pixels (0: the size that the model was made for)",
    )


def synonyms_input(purpose: str) -> Any:
    """Make the optional input for synonyms of the concept."""
    return io.String.Input(
        "synonyms",
        default="",
        multiline=True,
        optional=True,
        tooltip=f"synonyms of the concept {purpose}, one per line (empty: known ones)",
    )


def settings(config: type, values: Mapping[str, Any], **overrides: Any) -> Any:
    """Make a settings object from a node's inputs; `overrides` replace inputs of the same name."""
    names = [field.name for field in dataclasses.fields(config)]
    return config(**{**{name: values[name] for name in names if name in values}, **overrides})
