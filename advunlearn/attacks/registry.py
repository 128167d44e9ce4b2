"""The attacks by name, and how to make one with a given budget."""

from __future__ import annotations

import torch

from ..config.attacks import ATTACK_NAMES, AttackConfig
from ..config.evaluation import EvaluateConfig
from ..errors import AdvUnlearnError
from ..files import JsonDict
from .base import Attack, AttackContext
from .cce import CCE
from .emphasis import Emphasis
from .mma import MMA
from .p4d import P4DK, P4DN
from .pez import PEZ
from .random_prefix import RandomPrefix
from .ring_a_bell import RingABell
from .seed_search import SeedSearch
from .soft_prefix import SoftPrefix
from .synonym_search import SynonymSearch
from .unlearndiffatk import UnlearnDiffAtk

ATTACK_CLASSES: tuple[type[Attack], ...] = (
    RandomPrefix,
    SeedSearch,
    SynonymSearch,
    Emphasis,
    RingABell,
    MMA,
    PEZ,
    P4DN,
    P4DK,
    UnlearnDiffAtk,
    SoftPrefix,
    CCE,
)
ATTACKS = {attack.name: attack for attack in ATTACK_CLASSES}


def attack_class(name: str) -> type[Attack]:
    """Return an attack by its name. Raises AdvUnlearnError for a name that is not one of `ATTACK_NAMES`."""
    if name not in ATTACKS:
        raise AdvUnlearnError(f"attack is {name!r}; it must be one of {', '.join(ATTACK_NAMES)}")
    return ATTACKS[name]


def attack_settings(name: str, config: EvaluateConfig, overrides: JsonDict | None = None) -> AttackConfig:
    """Return an attack's settings: `overrides`, otherwise the shared budget, otherwise the published values.

    Raises AdvUnlearnError for a value out of range.
    """
    settings = attack_class(name).config_class
    budget = {field: getattr(config, shared) for field, shared in settings.shared.items()}
    return settings(**{**budget, **(overrides or {})})


def make_attack(name: str, context: AttackContext, config: AttackConfig, seed: int) -> Attack:
    """Return an attack with two streams of random draws: one for its steps, one for its starts."""
    steps = torch.Generator().manual_seed(seed + 1)
    starts = torch.Generator().manual_seed(seed + 2)
    return attack_class(name)(context, config, steps, starts)
