"""The published settings (arXiv 2405.15234 and its code) for Stable Diffusion 1.x, by what is erased."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Preset = Mapping[str, Mapping[str, Any]]  # name of a settings class -> values

CUSTOM = "custom"


def _published(retain_weight: float, kind: str, **concept: str) -> Preset:
    """Return the settings that all published encoders share, and the two that differ."""
    return {
        "ConceptConfig": {"kind": kind, "negative_guidance": 1.0, **concept},
        "TrainConfig": {
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
        # Its start "random" draws rows of the embedding table, which is `token` here.
        "AdversaryConfig": {
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
        "BankConfig": {"sampling_steps": 50, "guidance_scale": 3.0},
    }


PRESETS: dict[str, Preset] = {
    CUSTOM: {},
    "nudity": _published(0.3, "prompt", concept="nudity"),
    "style": _published(0.5, "style"),
    "object": _published(0.5, "object"),
}


def of(name: str, config: type) -> dict[str, Any]:
    """Return what a preset says of one settings class."""
    return dict(PRESETS[name].get(config.__name__, {}))
