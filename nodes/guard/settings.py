"""The guard's settings: a JSON file of the operator."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...advunlearn.config.base import Validated, setting
from ...advunlearn.errors import AdvUnlearnError

VARIABLE = "ADVUNLEARN_GUARD"
FILE = "guard.json"
# Node ids of the text encoder that the guard adds to a graph.
ENCODER_ID = "advunlearn_guard"
LOADER_ID = "advunlearn_guard_loader"
LOADERS = {1: "DualCLIPLoader", 2: "TripleCLIPLoader"}  # by the number of other encoders


@dataclass(frozen=True, kw_only=True)
class GuardConfig(Validated):
    """Which text encoder every graph gets, and what else a graph may contain."""

    encoder: str = setting("", "the robust encoder, by its name in Load Robust CLIP")
    other_encoders: tuple[str, ...] = setting(
        (), "further text encoders of the model, by their names in the host's CLIP loaders; for SDXL: CLIP-G's file"
    )
    type: str = setting("sdxl", "the type in the host's loader of two text encoders; only with one of other_encoders")
    embeddings: Literal["refuse", "allow"] = setting("refuse", "whether a prompt's embedding:NAME is taken")
    allow: tuple[str, ...] = setting((), "node classes to allow in addition")
    refuse: tuple[str, ...] = setting((), "node classes to refuse in addition, such as LoadImage")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("other_encoders", "allow", "refuse"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(value, str) for value in values):
                raise AdvUnlearnError(f"{name} is {values!r}; it must be a list of names")
            object.__setattr__(self, name, tuple(values))  # JSON has lists
        if not isinstance(self.encoder, str) or not self.encoder:
            raise AdvUnlearnError("encoder is missing; give the name of an encoder in Load Robust CLIP")
        if len(self.other_encoders) > max(LOADERS):
            raise AdvUnlearnError(f"other_encoders has {len(self.other_encoders)} names; the host loads at most two")

    def encoder_nodes(self) -> dict[str, dict[str, object]]:
        """Return the nodes, in the API's form, of the text encoder that every graph gets; its CLIP is ENCODER_ID's."""
        inputs: dict[str, object] = {"encoder": self.encoder, "strength": 1.0, "embeddings": self.embeddings}
        robust = {"class_type": "AdvUnlearnLoadRobustCLIP", "inputs": inputs}
        if not self.other_encoders:
            return {ENCODER_ID: robust}
        names = {f"clip_name{i}": name for i, name in enumerate((self.encoder, *self.other_encoders), 1)}
        kind = {"type": self.type} if len(self.other_encoders) == 1 else {}
        loader = {"class_type": LOADERS[len(self.other_encoders)], "inputs": {**names, **kind}}
        inputs["clip"] = [LOADER_ID, 0]
        return {LOADER_ID: loader, ENCODER_ID: robust}


def find_settings(pack: pathlib.Path, environment: Mapping[str, str] = os.environ) -> pathlib.Path | None:
    """Return the path of the operator's file; None if the guard is off.

    The environment variable counts first, then guard.json in the pack's folder.
    """
    if VARIABLE in environment:
        return pathlib.Path(environment[VARIABLE])
    return pack / FILE if (pack / FILE).exists() else None


def read_settings(path: pathlib.Path) -> GuardConfig:
    """Read the operator's file. Raises AdvUnlearnError if that is not possible."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdvUnlearnError(
            f"{path} cannot be read ({error}); give a JSON file with the name of an encoder"
        ) from error
    if not isinstance(values, dict):
        raise AdvUnlearnError(f"{path} is no JSON object; give for example " + '{"encoder": "robust.safetensors"}')
    return GuardConfig.from_dict(values)
