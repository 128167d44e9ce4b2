"""Quirks of the published code, by name: what each does, and which ones a mode has."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import AdvUnlearnError
from .base import Validated, setting

NO_QUIRKS = "none"


@dataclass(frozen=True, kw_only=True)
class Quirks(Validated):
    """One switch per quirk; with all of them off, training follows the paper."""

    result_before_last_step: bool = setting(
        False, "K attack steps apply K - 1 updates: one step trains on a random token"
    )
    gradient_accumulates: bool = setting(
        False, "the attack's gradient is never zeroed; a signed step leaves its sign in it, so its direction freezes"
    )
    words_for_tokens: bool = setting(
        False,
        "a prompt's length is counted in words, and as many tokens as the attack has are dropped behind that length: "
        "nudity is nu, self-harm is self harm",
    )
    cleaner_latents: bool = setting(
        False, "latents are 39 to 58 timesteps cleaner than the UNet is told, at the end of a trajectory up to 39"
    )
    one_timestep: bool = setting(False, "the samples of a batch, concept and retained, share one timestep")


QUIRK_NAMES = tuple(field.name for field in dataclasses.fields(Quirks))
NONE, OFFICIAL = Quirks(), Quirks(**dict.fromkeys(QUIRK_NAMES, True))


def quirks_setting() -> Any:
    """Declare the setting `quirks` of `TrainConfig`."""
    each = "; ".join(f"{field.name}: {field.metadata['help']}" for field in dataclasses.fields(Quirks))
    return setting(
        "",
        f"quirks of the published code to reproduce, separated by commas or spaces, or {NO_QUIRKS} (empty: all of "
        f"them in mode official, otherwise none). {each}",
    )


def quirk_names(quirks: Quirks) -> str:
    """Return the value of the setting `quirks` that stands for some of them."""
    return ",".join(name for name in QUIRK_NAMES if getattr(quirks, name)) or NO_QUIRKS


def parse_quirks(mode: str, names: str = "") -> Quirks:
    """Return the named quirks, or the mode's own if none are named. Raises AdvUnlearnError for an unknown name."""
    given = names.replace(",", " ").split()
    if not given:
        return OFFICIAL if mode == "official" else NONE
    if given == [NO_QUIRKS]:
        return NONE
    if unknown := [name for name in given if name not in QUIRK_NAMES]:
        raise AdvUnlearnError(f"quirks has {unknown[0]!r}; there are {', '.join(QUIRK_NAMES)}, or {NO_QUIRKS} alone")
    return Quirks(**dict.fromkeys(given, True))
