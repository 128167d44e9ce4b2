"""Node inputs made from the library's settings: flags and widgets share the default, the range and the help text."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from comfy_api.latest import io

from ..advunlearn.config.base import choices

CATEGORY = "AdvUnlearn"
UNBOUNDED = 2**53 - 1  # the largest integer that JavaScript, and so a widget, keeps exactly


def schema(**fields: Any) -> io.Schema:
    """Make a Schema in the pack's category, without the fields that this version of the host does not know."""
    known = {f.name for f in dataclasses.fields(io.Schema)}
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
    only: Sequence[str] = (),
    least: float | None = None,
    **more: Any,
) -> Any:
    """Make the input of one setting; `only` limits its choices, `least` raises its minimum."""
    field = next(f for f in dataclasses.fields(config) if f.name == name)
    hint, low, high = get_type_hints(config)[name], field.metadata["low"], field.metadata["high"]
    options: dict[str, Any] = {"default": field.default if default is None else default}
    options |= {"tooltip": field.metadata["help"], **more}
    kind = {int: io.Int, float: io.Float, str: io.String, bool: io.Boolean}.get(hint, io.Combo)
    if kind is io.Combo:
        options["options"] = list(only or choices(config, name))
    elif hint in (int, float):
        low = low if least is None else least
        lowest, highest = -UNBOUNDED if low is None else low, UNBOUNDED if high is None else min(high, UNBOUNDED)
        options |= {"min": hint(lowest), "max": hint(highest)}
    if hint is float:
        options |= {"step": 0.00001 if field.default and field.default < 0.01 else 0.05, "round": 0.000001}
    make = advanced if fold else lambda kind, *args, **kw: kind.Input(*args, **kw)
    return make(kind, id or name, **options)


def output(kind: Any, name: str, tooltip: str) -> Any:
    """Make an output with a label. Without `display_name`, v0.3.64 shows its type instead."""
    return kind.Output(name, display_name=name, tooltip=tooltip)


def resolution(tooltip: str) -> Any:
    """Make the input for an image size in pixels."""
    return io.Int.Input("resolution", default=512, min=64, max=2048, step=64, tooltip=f"{tooltip}, in pixels")


def prefixed(prefix: str, name: str) -> str:
    """Return the widget id of a setting; a name that begins with the prefix is not prefixed a second time."""
    return name if name.startswith(prefix) else prefix + name


def settings(config: type, values: Mapping[str, Any], prefix: str = "", **overrides: Any) -> Any:
    """Make a settings object from a node's inputs; `overrides` replace inputs of the same name."""
    ids = {field.name: prefixed(prefix, field.name) for field in dataclasses.fields(config)}
    return config(**{**{name: values[id] for name, id in ids.items() if id in values}, **overrides})
