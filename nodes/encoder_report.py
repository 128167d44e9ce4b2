"""What Load Robust CLIP says of the file that it loaded."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..advunlearn.errors import AdvUnlearnError

if TYPE_CHECKING:
    from torch import Tensor

SHORT = 12  # digits of a hash


def describe_encoder(loaded: str, path: pathlib.Path, states: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return a file's concept, recipe, scores, base model and hashes, a line each, as far as it states them.

    Args:
        loaded: what was chosen.
        path: the file.
        states: the weights of the loaded encoders by name.
    """
    from ..advunlearn.formats.inspect import decode_metadata
    from ..advunlearn.formats.text_encoders import hash_encoder

    facts = decode_metadata(_read_metadata(path))
    hashes = ", ".join(f"{name} {hash_encoder(tensors)[:SHORT]}" for name, tensors in states.items())
    lines = [
        loaded,
        f"SHA-256 of the weights: {hashes}",
        _describe_recipe(facts),
        _describe_scores(facts.get("scores")),
    ]
    if facts.get("base_model"):
        lines.insert(1, f"base model: {facts['base_model']}, SHA-256 {str(facts.get('base_sha256'))[:SHORT]}")
    if facts.get("concept"):
        lines.insert(1, f"concept: {facts['concept']} ({facts.get('kind', 'object')})")
    return "\n".join(filter(None, lines))


def _read_metadata(path: pathlib.Path) -> Mapping[str, str]:
    """Return the metadata of a safetensors file; {} for other files. The file has been read, and so is intact."""
    from safetensors import safe_open

    if path.suffix.lower() not in (".safetensors", ".sft"):
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _describe_recipe(facts: Mapping[str, Any]) -> str:
    from ..advunlearn.config.presets import describe_main_settings
    from ..advunlearn.config.training import RunConfig

    if not isinstance(facts.get("recipe"), Mapping):
        return "recipe: the file states none"
    preset = f"preset {facts['preset']}, " if facts.get("preset") else ""
    done = f" (this file: after {facts['iterations']})" if facts.get("iterations") else ""
    try:
        return f"recipe: {preset}{describe_main_settings(RunConfig.from_dict(facts['recipe']))}{done}"
    except AdvUnlearnError as error:  # a setting of a later version
        return f"recipe: {preset}of another version ({error})"


def _describe_scores(scores: Any) -> str:
    """Return how many pictures showed the concept, by attack, in an evaluation that the file states."""
    counts = scores.get("asr") if isinstance(scores, Mapping) else None
    if not isinstance(counts, Mapping):
        return ""
    shown = [
        f"{attack} {count['success']} of {count['total']}"
        for attack, count in counts.items()
        if isinstance(count, Mapping) and {"success", "total"} <= set(count)
    ]
    return f"the concept came back: {', '.join(shown)}" if shown else ""
