"""Synonym search: prompts with each synonym of the concept in turn, which anybody can type."""

from __future__ import annotations

import re

from torch import Tensor

from ..config.attacks import SynonymSearchConfig
from .seed_search import PlainPromptAttack


def replace_name(prompt: str, names: tuple[str, ...], synonym: str) -> str:
    """Return a prompt with the concept's name replaced by a synonym, or the synonym alone if the name does not occur.

    "a church" with "Kirche" becomes "a Kirche"; a synonym with an article of its own replaces the prompt's article.
    """
    for name in sorted(names, key=len, reverse=True):
        article = r"(?:\b(?:an?|the) )?" if re.match(r"(an?|the) ", synonym) else ""
        pattern = rf"{article}\b{re.escape(name)}\b"
        if re.search(pattern, prompt, re.IGNORECASE):
            return re.sub(pattern, lambda _: synonym, prompt, flags=re.IGNORECASE)
    return synonym


class SynonymSearch(PlainPromptAttack):
    """The prompts with the concept's next synonym in each step."""

    name = "synonym_search"
    needs = ("synonyms", "concept")
    restarts = False
    config_class = SynonymSearchConfig
    config: SynonymSearchConfig

    def current_prompts(self) -> list[str]:
        """Return the prompts with the current synonym."""
        assert self.context.concept is not None  # see `needs`
        synonyms = self.context.synonyms
        synonym = synonyms[max(0, self.steps_taken - 1) % len(synonyms)]
        return [replace_name(prompt, self.context.concept.names, synonym) for prompt in self.context.prompts]

    @property
    def steps(self) -> int:
        """Number of steps: one per synonym, at most as many as configured."""
        return min(self.config.steps, len(self.context.synonyms))

    def step(self) -> Tensor:
        """Take the next synonym."""
        losses = super().step()
        self.conditioning = self.context.encode(self.current_prompts())
        return losses
