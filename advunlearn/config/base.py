"""What the settings classes are made of: fields with help and range, and the check of every value."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_type_hints

from ..errors import AdvUnlearnError


def setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    """Declare a dataclass field with its help text and its range, both ends included."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def choices(config: type, name: str) -> tuple[str, ...]:
    """Return the values a Literal field may take, or () for any other field."""
    hint = get_type_hints(config)[name]
    return get_args(hint) if getattr(hint, "__origin__", None) is Literal else ()


class Validated:
    """Check every field against its choices and its range when the object is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, allowed = getattr(self, field.name), choices(type(self), field.name)
            low, high = field.metadata.get("low"), field.metadata.get("high")
            if allowed and value not in allowed:
                raise AdvUnlearnError(f"{field.name} is {value!r}; it must be one of {', '.join(allowed)}")
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise AdvUnlearnError(f"{field.name} is {value}; it must be {_range(low, high)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"between {low} and {high}"
    return f"at least {low}" if high is None else f"at most {high}"
