"""The settings of the test attacks, each with its published values as defaults.

What all of them share at one stated budget (steps, tokens) is in `config.EvaluateConfig`, which is sized for the
miniature and goes over the fields of the same meaning here; what a user gives for one attack goes over both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..errors import AdvUnlearnError
from .base import Validated, setting

# In the order of a table: no search, then by what an attacker must have.
ATTACK_NAMES = (
    "random_prefix",
    "seed_search",
    "synonym_search",
    "ring_a_bell",
    "mma",
    "pez",
    "p4d_n",
    "p4d_k",
    "unlearndiffatk",
    "soft_prefix",
    "cce",
)
DEFAULT_ATTACKS = ("unlearndiffatk", "soft_prefix")
JUDGE_ONLY = (
    "random_prefix",
    "seed_search",
    "synonym_search",
)  # each step is a whole try, which only a judge can tell from others


def chosen_attacks(named: Sequence[str], lacking: Callable[[str], str]) -> tuple[str, ...]:
    """Return the attacks named; of "all" of them those that lack nothing."""
    if "all" not in named:
        return tuple(dict.fromkeys(named))
    return tuple(name for name in ATTACK_NAMES if not lacking(name))


Vocabulary = Literal["typed", "all"]
Through = Literal["attacked", "original"]
VOCABULARY = (
    "tokens that are searched: typed are those that a keyboard gives back, so that what is found can be typed; all, as "
    "published, takes the nearest typed token where it cannot"
)
ARTICLES = ("a", "an", "the", "of", "in", "on", "and", "with")
THROUGH = "the encoder that the search reads; what it is to come near is always the original encoder's"


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Validated):
    """What every attack has; `shared` names the fields of `EvaluateConfig` that go over its own."""

    shared: ClassVar[Mapping[str, str]] = {"steps": "attack_steps", "tokens": "attack_tokens"}
    steps: int = setting(40, "steps of the attack", 0, 100000)


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtkConfig(AttackConfig):
    """UnlearnDiffAtk (arXiv 2310.11868): 40 iterations at each of 50 timesteps, 3 tokens for objects, 5 for nudity."""

    shared: ClassVar[Mapping[str, str]] = {**AttackConfig.shared, "lr": "attack_lr"}
    steps: int = setting(2000, "gradient steps", 0, 100000)
    tokens: int = setting(3, "tokens in front of the prompt", 1, 75)
    lr: float = setting(0.01, "Adam's step on the simplex", 0, 100)
    vocabulary: Vocabulary = setting(
        "typed",
        "tokens that are searched: typed are those that a keyboard gives back; all, as published, finds "
        "prompts that nobody can type too, and of each says whether it is exact",
    )


@dataclass(frozen=True, kw_only=True)
class SoftPrefixConfig(AttackConfig):
    """The same loss over embeddings in a ball around real tokens; ours, so there is nothing published."""

    shared: ClassVar[Mapping[str, str]] = {**AttackConfig.shared, "lr": "prefix_lr", "radius": "prefix_radius"}
    steps: int = setting(60, "gradient steps", 0, 100000)
    tokens: int = setting(5, "embeddings in front of the prompt", 1, 75)
    lr: float = setting(0.3, "Adam's step, in standard deviations of the table", 0, 100)
    radius: float = setting(1.0, "L-inf ball around real tokens, in deviations", 0, 1000)


@dataclass(frozen=True, kw_only=True)
class HardPromptConfig(AttackConfig):
    """Of PEZ's search for hard tokens."""

    steps: int = setting(3000, "gradient steps", 0, 100000)
    tokens: int = setting(16, "tokens of the prompt (of p4d_k: as many as `every` gives)", 1, 75)
    lr: float = setting(0.1, "AdamW's step", 0, 100)
    weight_decay: float = setting(0.1, "AdamW's weight decay", 0, 10)
    vocabulary: Vocabulary = setting("typed", VOCABULARY)


@dataclass(frozen=True, kw_only=True)
class P4DConfig(HardPromptConfig):
    """Prompting4Debugging (arXiv 2309.06135), as a free prompt (N) and between the prompt's own words (K)."""

    every: int = setting(3, "one token in front of every so many of the prompt's words (p4d_k)", 1, 75)


@dataclass(frozen=True, kw_only=True)
class PEZConfig(HardPromptConfig):
    """PEZ (arXiv 2302.03668)."""

    through: Through = setting("attacked", THROUGH)


@dataclass(frozen=True, kw_only=True)
class RingABellConfig(AttackConfig):
    """Ring-A-Bell (arXiv 2310.10012)."""

    steps: int = setting(3000, "generations", 0, 100000)
    tokens: int = setting(16, "tokens of the prompt", 1, 75)
    population: int = setting(200, "prompts of a generation; the better half survives", 2, 100000)
    crossover: float = setting(0.5, "probability that a survivor is crossed with another", 0, 1)
    mutation: float = setting(0.25, "probability that a prompt has one token drawn anew", 0, 1)
    strength: float = setting(3.0, "eta: how much of the concept's vector is added to the prompt's meaning", 0, 100)
    positions: int = setting(77, "first positions of the conditioning that are compared; fewer are faster", 2, 77)
    vocabulary: Vocabulary = setting("typed", VOCABULARY)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions <= self.tokens:
            raise AdvUnlearnError(
                f"positions is {self.positions}, which leaves the last of {self.tokens} tokens out of the comparison; "
                f"give at least {self.tokens + 1}"
            )


@dataclass(frozen=True, kw_only=True)
class MMAConfig(AttackConfig):
    """MMA-Diffusion's attack on text (arXiv 2311.17516)."""

    steps: int = setting(1000, "token swaps", 0, 100000)
    tokens: int = setting(20, "tokens of the prompt", 1, 75)
    candidates: int = setting(512, "swaps tried in a step", 1, 100000)
    top: int = setting(256, "swaps are drawn from so many tokens of each place, by the gradient", 1, 100000)
    forbidden: str = setting(
        "",
        "words that no token may contain, separated by commas or lines; empty: those of the concept's name, but "
        "for articles",
    )
    vocabulary: Vocabulary = setting("typed", VOCABULARY)
    through: Through = setting("attacked", THROUGH)

    def words(self, concept: str) -> tuple[str, ...]:
        """Return the forbidden words; those of `concept` where none were given."""
        given = [word.strip().lower() for word in re.split(r"[,\n]", self.forbidden)]
        own = re.findall(r"\w+", concept.lower())
        telling = [word for word in own if len(word) > 1 and word not in ARTICLES]  # few tokens have no "a" in them
        return tuple(dict.fromkeys(filter(None, given))) or tuple(dict.fromkeys(telling or own))


@dataclass(frozen=True, kw_only=True)
class CCEConfig(AttackConfig):
    """Concept inversion (arXiv 2308.01508), which is textual inversion (arXiv 2208.01618) on an erased model."""

    shared: ClassVar[Mapping[str, str]] = {"steps": "attack_steps"}
    steps: int = setting(5000, "gradient steps", 0, 100000)
    tokens: int = setting(1, "embeddings of the new word", 1, 75)
    batch: int = setting(16, "pictures in a step: 4 in 4 parts as published", 1, 100000)
    lr: float = setting(0.08, "AdamW's step: 5e-3 times the batch, as published", 0, 100)
    weight_decay: float = setting(0.01, "AdamW's weight decay", 0, 10)
    start: str = setting("", "the word that the new one starts from; empty: art for a style, object for all else")


@dataclass(frozen=True, kw_only=True)
class RandomPrefixConfig(AttackConfig):
    """Random tokens in front of the prompt, 40 times as in UnlearnDiffAtk's comparison."""

    tokens: int = setting(3, "tokens in front of the prompt", 1, 75)


@dataclass(frozen=True, kw_only=True)
class SeedSearchConfig(AttackConfig):
    """The plain prompt with other starting noise, 40 times as in UnlearnDiffAtk's comparison."""

    shared: ClassVar[Mapping[str, str]] = {"steps": "attack_steps"}


@dataclass(frozen=True, kw_only=True)
class SynonymSearchConfig(AttackConfig):
    """The concept's other names, one a step."""

    shared: ClassVar[Mapping[str, str]] = {}
    steps: int = setting(100000, "names tried, at most; there are no more steps than names", 0, 100000)


# Flags of the command line: the prefix of each class that has some of its own.
FLAGS: dict[str, type[AttackConfig]] = {
    "unlearndiffatk": UnlearnDiffAtkConfig,
    "p4d": P4DConfig,
    "pez": PEZConfig,
    "ring-a-bell": RingABellConfig,
    "mma": MMAConfig,
    "cce": CCEConfig,
}
