"""Base of the settings classes: fields with a help text and a range, checked when an object is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from ..errors import AdvUnlearnError
from ..files import JsonDict

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[str, ...] = get_args(Dtype)
Self = TypeVar("Self", bound="Validated")
# What may stand for a value of a type, and the type in words.
TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    bool: ((bool,), "true or false"),
}


def setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    """Declare a dataclass field with its default, its help text and its range, both ends included."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def choices(config: type, name: str) -> tuple[str, ...]:
    """Return the values that a Literal field allows; () for any other field."""
    hint = get_type_hints(config)[name]
    return get_args(hint) if getattr(hint, "__origin__", None) is Literal else ()


class Validated:
    """A frozen dataclass of settings: each value is checked against its type, its choices and its range.

    Raises AdvUnlearnError, on construction, for a value that is not allowed.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, allowed = getattr(self, field.name), choices(type(self), field.name)
            low, high = field.metadata.get("low"), field.metadata.get("high")
            kinds, described = TYPES.get(hints[field.name], ((object,), ""))
            if not isinstance(value, kinds):
                raise AdvUnlearnError(f"{field.name} is {value!r}; it must be {described}")
            if allowed and value not in allowed:
                raise AdvUnlearnError(f"{field.name} is {value!r}; it must be one of {', '.join(allowed)}")
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise AdvUnlearnError(f"{field.name} is {value}; it must be {_range(low, high)}")

    def to_dict(self) -> JsonDict:
        """Return the settings as plain values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[Self], values: JsonDict) -> Self:
        """Make settings from what `to_dict` returned.

        Raises AdvUnlearnError for a name that is no setting, and for what is no settings at all.
        """
        if not isinstance(values, Mapping):
            raise AdvUnlearnError(f"{values!r} is no {cls.__name__}; give its settings by name")
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        if unknown := [name for name in values if name not in names]:
            raise AdvUnlearnError(f"{unknown[0]} is no setting of {cls.__name__}; it has {', '.join(names)}")
        return cls(**values)


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"between {low} and {high}"
    return f"at least {low}" if high is None else f"at most {high}"


def first_difference(
    saved: Mapping[str, object], given: Mapping[str, object], where: str = "", ignored: Container[str] = ()
) -> str:
    """Return the first difference of two nested mappings as "section.name was OLD and is NEW"; "" if there is none.

    Entries whose name is in `ignored` are not compared.
    """
    for name in sorted(saved.keys() | given.keys()):
        old = saved.get(name)
        new = given.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if inner := first_difference(old, new, f"{where}{name}.", ignored):
                return inner
        elif old != new and name not in ignored:
            return f"{where}{name} was {old!r} and is {new!r}"
    return ""
