"""The attacks by name, and how one is made at a stated budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..config.attacks import ATTACK_NAMES, AttackConfig
from ..config.evaluation import EvaluateConfig
from ..errors import AdvUnlearnError
from .base import Attack, AttackContext
from .baselines import RandomPrefix, SeedSearch, SynonymSearch
from .cce import CCE
from .mma import MMA
from .p4d import P4DK, P4DN
from .pez import PEZ
from .ring_a_bell import RingABell
from .unlearndiffatk import SoftPrefix, UnlearnDiffAtk

KINDS: tuple[type[Attack[Any]], ...] = (
    RandomPrefix,
    SeedSearch,
    SynonymSearch,
    RingABell,
    MMA,
    PEZ,
    P4DN,
    P4DK,
    UnlearnDiffAtk,
    SoftPrefix,
    CCE,
)
ATTACKS: dict[str, type[Attack[Any]]] = {kind.name: kind for kind in KINDS}


def attack_class(name: str) -> type[Attack[Any]]:
    """Return an attack by its name. Raises AdvUnlearnError for a name that is not one of `ATTACK_NAMES`."""
    if name not in ATTACKS:
        raise AdvUnlearnError(f"attack is {name!r}; it must be one of {', '.join(ATTACK_NAMES)}")
    return ATTACKS[name]


def attack_settings(name: str, config: EvaluateConfig, given: Mapping[str, Any] | None = None) -> AttackConfig:
    """Return an attack's settings: the published ones, over them the shared budget, over that what was given."""
    kind = attack_class(name).config_class
    budget = {own: getattr(config, shared) for own, shared in kind.shared.items()}
    return kind(**{**budget, **(given or {})})


def make_attack(name: str, scene: AttackContext, config: AttackConfig, seed: int) -> Attack[Any]:
    """Return an attack on a scene, with two streams of random draws: of its steps, and of its starts."""
    steps, starts = (torch.Generator().manual_seed(seed + k) for k in (1, 2))
    return attack_class(name)(scene, config, steps, starts)
