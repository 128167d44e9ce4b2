"""The settings of the test attacks, with the published values as defaults.

The budget that all attacks share (steps, tokens) is in `EvaluateConfig`, is sized for the miniature, and overrides the
fields of the same meaning here. Settings that a user gives for one attack override both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..errors import AdvUnlearnError
from .base import Validated, setting
from .lists import split_list

# In the order of a table: attacks without a search first, then by what an attacker must have.
ATTACK_NAMES = (
    "random_prefix",
    "seed_search",
    "synonym_search",
    "emphasis",
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
# Each of their steps is a separate attempt, which only a judge can compare with the others.
JUDGE_ONLY = ("random_prefix", "seed_search", "synonym_search", "emphasis")


def choose_attacks(names: Sequence[str], find_lack: Callable[[str], str]) -> tuple[str, ...]:
    """Return the named attacks without repeats; for "all", every attack for which `find_lack` returns ""."""
    if "all" not in names:
        return tuple(dict.fromkeys(names))
    return tuple(name for name in ATTACK_NAMES if not find_lack(name))


Vocabulary = Literal["typed", "all"]
Through = Literal["attacked", "original"]
Keep = Literal["best", "last"]
WeightStart = Literal["uniform", "random"]
VOCABULARY = (
    "searched tokens: typed are those that a keyboard can enter, so that the result can be typed; all, as published, "
    "replaces an untypable token of the result by its nearest typed one"
)
COMPARE_INTERVAL = 20  # steps between two comparisons of points
KEEP = (
    f"result of a search: best of the points compared (the start, every {COMPARE_INTERVAL} steps, each judgement), by "
    "the attack's own loss on draws that stay the same; or the last point"
)
THROUGH = "the text encoder that the search reads; its target is always the original encoder's"
ARTICLES = ("a", "an", "the", "of", "in", "on", "and", "with")


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Validated):
    """The settings of every attack; `shared` maps its fields to those of `EvaluateConfig` that override them."""

    shared: ClassVar[Mapping[str, str]] = {"steps": "attack_steps", "tokens": "attack_tokens"}
    steps: int = setting(40, "attack steps", 0, 100000)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(AttackConfig):
    """The settings of every search by gradient."""

    shared: ClassVar[Mapping[str, str]] = {**AttackConfig.shared, "keep": "attack_keep"}
    keep: Keep = setting("best", KEEP)


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtkConfig(SearchConfig):
    """UnlearnDiffAtk (arXiv 2310.11868): 40 iterations at each of 50 timesteps, 3 tokens for objects, 5 for nudity."""

    shared: ClassVar[Mapping[str, str]] = {**SearchConfig.shared, "lr": "attack_lr"}
    steps: int = setting(2000, "gradient steps", 0, 100000)
    tokens: int = setting(3, "tokens in front of the prompt", 1, 75)
    lr: float = setting(0.01, "learning rate of Adam on the simplex", 0, 100)
    weight_decay: float = setting(0.1, "weight decay of Adam", 0, 10)
    timesteps: int = setting(
        5,
        "noise the images at N timesteps in ascending order, with an equal part of the steps at each (published: 50); "
        "0: at a random timestep in every step",
        0,
        1000,
    )
    start: WeightStart = setting(
        "uniform", "weights of the tokens that the search starts from: uniform, as published, or random"
    )
    vocabulary: Vocabulary = setting(
        "typed",
        "searched tokens: typed are those that a keyboard can enter; all, as published, also the others. Images are "
        "then generated from the result's text, tokenized again, and the report says whether that gives the found "
        "tokens (exact)",
    )


@dataclass(frozen=True, kw_only=True)
class SoftPrefixConfig(SearchConfig):
    """The loss of UnlearnDiffAtk over embeddings in a ball around real tokens; there are no published values."""

    shared: ClassVar[Mapping[str, str]] = {**SearchConfig.shared, "lr": "prefix_lr", "radius": "prefix_radius"}
    steps: int = setting(60, "gradient steps", 0, 100000)
    tokens: int = setting(5, "embeddings in front of the prompt", 1, 75)
    lr: float = setting(0.3, "learning rate of Adam, in standard deviations of the embedding table", 0, 100)
    radius: float = setting(
        1.0, "radius of the L-inf ball around real tokens, in standard deviations of the embedding table", 0, 1000
    )


@dataclass(frozen=True, kw_only=True)
class HardPromptConfig(SearchConfig):
    """PEZ's search for hard tokens."""

    steps: int = setting(3000, "gradient steps", 0, 100000)
    tokens: int = setting(16, "tokens of the prompt (p4d_k: as many as word_interval gives)", 1, 75)
    lr: float = setting(0.1, "learning rate of AdamW", 0, 100)
    weight_decay: float = setting(0.1, "weight decay of AdamW", 0, 10)
    vocabulary: Vocabulary = setting("typed", VOCABULARY)


@dataclass(frozen=True, kw_only=True)
class P4DConfig(HardPromptConfig):
    """Prompting4Debugging (arXiv 2309.06135), with a free prompt (N) or between the words of the prompt (K)."""

    word_interval: int = setting(3, "p4d_k: insert a token in front of every N-th word of the prompt", 1, 75)


@dataclass(frozen=True, kw_only=True)
class PEZConfig(HardPromptConfig):
    """PEZ (arXiv 2302.03668)."""

    through: Through = setting("attacked", THROUGH)


@dataclass(frozen=True, kw_only=True)
class RingABellConfig(AttackConfig):
    """Ring-A-Bell (arXiv 2310.10012)."""

    steps: int = setting(3000, "generations of the genetic search", 0, 100000)
    tokens: int = setting(16, "tokens of the prompt", 1, 75)
    population: int = setting(200, "prompts per generation; the better half survives", 2, 100000)
    crossover: float = setting(0.5, "probability that a survivor is crossed with another one", 0, 1)
    mutation: float = setting(0.25, "probability that one token of a prompt is replaced by a random one", 0, 1)
    strength: float = setting(3.0, "eta: weight of the concept vector that is added to the prompt's encoding", 0, 100)
    positions: int = setting(77, "compare the first N positions of the conditioning; fewer are faster", 2, 77)
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
    candidates: int = setting(512, "swaps compared per step", 1, 100000)
    top: int = setting(256, "draw swaps from the N tokens of each position with the lowest gradient", 1, 100000)
    forbidden: str = setting(
        "",
        "words that no token may contain, separated by commas or lines (empty: the words of the concept's name without "
        "articles)",
    )
    vocabulary: Vocabulary = setting("typed", VOCABULARY)
    through: Through = setting("attacked", THROUGH)

    def forbidden_words(self, concept: str) -> tuple[str, ...]:
        """Return the forbidden words; by default those of `concept`."""
        chosen = [word.lower() for word in split_list(self.forbidden)]
        words = re.findall(r"\w+", concept.lower())
        # Almost every token contains an "a", so that articles would leave nothing to search.
        long_words = [word for word in words if len(word) > 1 and word not in ARTICLES]
        return tuple(dict.fromkeys(chosen or long_words or words))


@dataclass(frozen=True, kw_only=True)
class CCEConfig(SearchConfig):
    """Concept inversion (arXiv 2308.01508): textual inversion (arXiv 2208.01618) on an erased model."""

    shared: ClassVar[Mapping[str, str]] = {"steps": "attack_steps", "keep": "attack_keep"}
    steps: int = setting(5000, "gradient steps", 0, 100000)
    tokens: int = setting(1, "embeddings of the new word", 1, 75)
    batch: int = setting(16, "images per step (published: 4, in 4 accumulated parts)", 1, 100000)
    lr: float = setting(0.08, "learning rate of AdamW (published: 5e-3 times the batch)", 0, 100)
    weight_decay: float = setting(0.01, "weight decay of AdamW", 0, 10)
    start: str = setting("", "word that the new word starts from (empty: art for a style, otherwise object)")


@dataclass(frozen=True, kw_only=True)
class RandomPrefixConfig(AttackConfig):
    """Random tokens in front of the prompt, 40 attempts as in UnlearnDiffAtk's comparison."""

    tokens: int = setting(3, "tokens in front of the prompt", 1, 75)


@dataclass(frozen=True, kw_only=True)
class SeedSearchConfig(AttackConfig):
    """The plain prompt with other initial noise, 40 attempts as in UnlearnDiffAtk's comparison."""

    shared: ClassVar[Mapping[str, str]] = {"steps": "attack_steps"}


@dataclass(frozen=True, kw_only=True)
class SynonymSearchConfig(AttackConfig):
    """Synonyms of the concept, one per step."""

    shared: ClassVar[Mapping[str, str]] = {}
    steps: int = setting(100000, "maximum number of synonyms; there is one step per synonym", 0, 100000)


@dataclass(frozen=True, kw_only=True)
class EmphasisConfig(AttackConfig):
    """Weights of the concept's name in the prompt, one per step."""

    shared: ClassVar[Mapping[str, str]] = {}
    steps: int = setting(100000, "maximum number of weights; there is one step per weight", 0, 100000)
    weights: str = setting(
        "1.1, 1.3, 1.5, 2, 3, 5, -1, -2", "weights of the concept's name, separated by commas, in ComfyUI's syntax"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.values or not all(map(math.isfinite, self.values)):
            raise AdvUnlearnError(
                f"weights is {self.weights!r}; give numbers separated by commas, for example 1.5, 2, -1"
            )
        # One step per weight: a larger number would be reported as the number of steps.
        object.__setattr__(self, "steps", min(self.steps, len(self.values)))

    @property
    def values(self) -> tuple[float, ...]:
        """The weights as numbers; nan for a part that is none."""
        return tuple(_parse_number(part) for part in self.weights.split(",") if part.strip())


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


# The prefix of the command-line flags of each attack that has flags.
FLAG_PREFIXES: dict[str, type[AttackConfig]] = {
    "unlearndiffatk": UnlearnDiffAtkConfig,
    "p4d": P4DConfig,
    "pez": PEZConfig,
    "ring-a-bell": RingABellConfig,
    "mma": MMAConfig,
    "cce": CCEConfig,
    "emphasis": EmphasisConfig,
}
