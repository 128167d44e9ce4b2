"""Attacks without a search: what any other must beat, and what anybody can type.

Random prefixes and other seeds are the baselines of arXiv 2310.11868. Synonyms are the concept's other names.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ..config.attacks import RandomPrefixConfig, SeedSearchConfig, SynonymSearchConfig
from ..models.ddim import draw_noise
from ..models.text_encoder import tokenize
from .base import Attack, AttackOutput
from .prompt_slots import content_tokens, prefix_slots
from .token_attacks import TokenAttack, prefix_texts


class RandomPrefix(TokenAttack[RandomPrefixConfig]):
    """Other random tokens in front of the prompt in each step, all of which can be typed."""

    name, config_class = "random_prefix", RandomPrefixConfig

    def start(self) -> None:
        """Draw the first prefixes."""
        scene = self.scene
        self.slots = prefix_slots(scene.target.ids, self.config.tokens, scene.tokenizer)
        self.words = self.vocabulary("typed")
        self.tokens = self.drawn(self.starts)

    def drawn(self, generator: torch.Generator) -> Tensor:
        """Draw prefixes (N, k)."""
        return self.words[torch.randint(len(self.words), self.slots.at.shape, generator=generator)]

    def step(self) -> Tensor:
        """Draw other prefixes."""
        self.tokens = self.drawn(self.generator)
        return torch.full((len(self.tokens),), torch.nan)

    def ids(self) -> Tensor:
        """Return the current prefixes."""
        return self.tokens

    def texts(self) -> list[dict[str, Any]]:
        """Return prefix and prompt."""
        return prefix_texts(self)


class PlainAttack(Attack[Any]):
    """An attack that asks in whole prompts."""

    def asked(self) -> list[str]:
        """Return the prompts now."""
        return list(self.scene.prompts)

    def start(self) -> None:
        """Count the steps taken."""
        self.taken = 0
        self.context = self.scene.encode(self.asked())

    def step(self) -> Tensor:
        """Go on to the next try."""
        self.taken += 1
        return torch.full((len(self.scene.prompts),), torch.nan)

    def found(self) -> AttackOutput:
        """Return the prompts as they are."""
        return AttackOutput(self.context, self.context.new_zeros(len(self.context), 0, self.context.shape[-1]))

    def texts(self) -> list[dict[str, Any]]:
        """Return the prompts and their tokens: typed as they are, they are what was found."""
        tokenizer, asked = self.scene.tokenizer, self.asked()
        rows = content_tokens(tokenize(tokenizer, asked), self.scene.target.eos)
        return [
            {"prompt": prompt, "tokens": tokenizer.convert_ids_to_tokens(row), "exact": True}
            for prompt, row in zip(asked, rows, strict=True)
        ]


class SeedSearch(PlainAttack):
    """The plain prompt, with other starting noise in each step."""

    name, config_class = "seed_search", SeedSearchConfig

    def start(self) -> None:
        """Draw the first noise."""
        super().start()
        self.draw(self.starts)

    def draw(self, generator: torch.Generator) -> None:
        """Draw a seed for each case, and its noise, so that the seed alone gives the picture again."""
        count, *shape = self.scene.target.x_0.shape
        self.seeds: list[int] = torch.randint(2**32, (count,), generator=generator).tolist()
        self.noise = torch.stack([draw_noise(seed, shape) for seed in self.seeds])

    def step(self) -> Tensor:
        """Draw other noise."""
        self.draw(self.generator)
        return super().step()

    def texts(self) -> list[dict[str, Any]]:
        """Return the prompts, and the seeds of their noise."""
        return [text | {"noise_seed": seed} for text, seed in zip(super().texts(), self.seeds, strict=True)]

    def found(self) -> AttackOutput:
        """Return the prompts, with the noise to start from."""
        plain = super().found()
        return AttackOutput(plain.conditioning, plain.embeddings, self.noise.to(self.scene.device))


def replace_name(prompt: str, names: tuple[str, ...], synonym: str) -> str:
    """Return a prompt with the concept's name replaced; the synonym alone where the prompt does not name it.

    "a church" by "Kirche" is "a Kirche"; a synonym that begins with an article takes the prompt's own away.
    """
    for name in sorted(names, key=len, reverse=True):
        article = r"(?:\b(?:an?|the) )?" if re.match(r"(an?|the) ", synonym) else ""
        pattern = rf"{article}\b{re.escape(name)}\b"
        if re.search(pattern, prompt, re.IGNORECASE):
            return re.sub(pattern, lambda _: synonym, prompt, flags=re.IGNORECASE)
    return synonym


class SynonymSearch(PlainAttack):
    """The concept's other names, the next one in each step."""

    name, config_class = "synonym_search", SynonymSearchConfig
    needs, restarts = ("synonyms", "concept"), False

    def asked(self) -> list[str]:
        """Return the prompts by the last synonym tried."""
        concept, synonyms = self.scene.concept, self.scene.synonyms
        assert concept is not None  # `needs`
        synonym = synonyms[max(0, self.taken - 1) % len(synonyms)]
        return [replace_name(prompt, concept.names, synonym) for prompt in self.scene.prompts]

    @property
    def steps(self) -> int:
        """Each synonym once."""
        return min(self.config.steps, len(self.scene.synonyms))

    def step(self) -> Tensor:
        """Go on to the next synonym."""
        losses = super().step()
        self.context = self.scene.encode(self.asked())
        return losses
