"""Random prefixes, a baseline of UnlearnDiffAtk (Zhang et al., arXiv 2310.11868)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.attacks import RandomPrefixConfig
from .base import TokenAttack
from .prompt_slots import prefix_slots
from .vocabulary import PromptRow, describe_prefix


class RandomPrefix(TokenAttack):
    """New random typable tokens in front of the prompt in each step."""

    name = "random_prefix"
    config_class = RandomPrefixConfig
    config: RandomPrefixConfig

    def start(self) -> None:
        """Draw the first prefixes."""
        self.slots = prefix_slots(self.context.targets.ids, self.config.tokens, self.context.tokenizer)
        self.vocabulary = self.find_vocabulary("typed")
        self.tokens = self.draw_prefixes(self.starts)

    def draw_prefixes(self, generator: torch.Generator) -> Tensor:
        """Draw prefixes (N, k)."""
        return self.vocabulary[torch.randint(len(self.vocabulary), self.slots.at.shape, generator=generator)]

    def step(self) -> Tensor:
        """Draw new prefixes."""
        self.tokens = self.draw_prefixes(self.generator)
        return torch.full((len(self.tokens),), torch.nan)

    def token_ids(self) -> Tensor:
        """Return the current prefixes."""
        return self.tokens

    def prompts(self) -> list[PromptRow]:
        """Return prefix and prompt of each case."""
        pairs = zip(self.tokens, self.context.prompts, strict=True)
        return [describe_prefix(self.context.tokenizer, prefix, prompt) for prefix, prompt in pairs]
