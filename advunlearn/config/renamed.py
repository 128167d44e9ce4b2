"""Names that settings had in earlier versions, so that saved recipes, run states and config files stay readable."""

from __future__ import annotations

from collections.abc import Mapping

from ..files import JsonDict

RENAMED: dict[str, dict[str, str]] = {
    "train": {"layers": "num_layers", "retain_by": "retain_mode"},
    "attack": {
        "every": "attack_interval",
        "redraw": "resample",
        "words": "inversion_tokens",
        "word_steps": "inversion_steps",
        "word_share": "inversion_share",
        "word_renewal": "inversion_restart_interval",
    },
    "bank": {"reuse": "draws_per_sample"},
    "evaluate": {"attack_every": "judge_interval"},
}

RENAMED_ATTACKS = {"routes": "synonym_search"}


def current_name(section: str, name: str) -> str:
    """Return the name that a setting of a section has now."""
    return RENAMED.get(section, {}).get(name, name)


def current_attack(name: str) -> str:
    """Return the name that an attack has now."""
    return RENAMED_ATTACKS.get(name, name)


def with_current_names(settings: Mapping[str, object]) -> JsonDict:
    """Return settings, a mapping per section, with all names as they are now; other entries stay."""
    return {
        section: {current_name(section, name): value for name, value in values.items()}
        if isinstance(values, Mapping) and section in RENAMED
        else values
        for section, values in settings.items()
    }
