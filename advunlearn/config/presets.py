"""Presets: the published settings (arXiv 2405.15234 and its code) by kind of concept, and the miniature's own."""

from __future__ import annotations

from collections.abc import Mapping

Preset = Mapping[str, Mapping[str, object]]  # section of `RunConfig` -> setting -> value

AUTO = "auto"  # the miniature's settings for the miniature, the published ones of the concept's kind for other models
CUSTOM = "custom"
MINIATURE = "miniature"


def _make_preset(retain_weight: float, kind: str, **concept: str) -> Preset:
    """Return the settings that all published encoders share, with those that differ."""
    return {
        "concept": {"kind": kind, "negative_guidance": 1.0, **concept},
        "train": {
            "iterations": 1000,
            "warmup": 200,
            "lr": 1e-5,
            "batch": 1,
            "clean_share": 0.0,
            "retain_batch": 5,
            "retain_weight": retain_weight,
            "retain_mode": "loss",
            "trainable": "layers",
            "num_layers": 0,
            "final_norm": "auto",
        },
        # The published start "random" draws rows of the embedding table, which is called token here.
        "attack": {
            "steps": 30,
            "step_size": 1e-3,
            "unit": "absolute",
            "update": "adam",
            "tokens": 1,
            "start": "token",
            "restarts": 1,
            "resample": "step",
            "radius": 0.0,
            "position": "prefix",
            "space": "embedding",
            "attack_interval": 1,
        },
        "bank": {"sampling_steps": 50, "guidance_scale": 3.0},
    }


PRESETS: dict[str, Preset] = {
    CUSTOM: {},
    MINIATURE: {},  # the defaults of the settings were chosen on it
    "nudity": _make_preset(0.3, "prompt", concept="nudity"),
    "style": _make_preset(0.5, "style"),
    "object": _make_preset(0.5, "object"),
}


def resolve_preset(name: str, kind: str, is_miniature: bool) -> str:
    """Return the preset that `auto` stands for, or the name itself.

    Args:
        name: a preset, or `AUTO`.
        kind: kind of the concept, see `ConceptConfig`. A prompt that is used verbatim trains as an object does.
        is_miniature: whether the model is the miniature.
    """
    if name != AUTO:
        return name
    if is_miniature:
        return MINIATURE
    return "style" if kind == "style" else "object"


def preset_values(name: str, section: str) -> dict[str, object]:
    """Return a preset's values for one section of `RunConfig`; {} if the preset does not set any."""
    return dict(PRESETS[name].get(section, {}))
