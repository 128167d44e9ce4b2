"""UnlearnDiffAtk (Zhang et al., arXiv 2310.11868): adversarial tokens in front of the prompt.

It needs no original model. Its target is an image of the concept, and its loss is the denoising loss
|| noise - eps(x_t, t | c') ||^2 of the attacked model. Each case (prompt, seed, target) has its own prefix. As in the
paper the timesteps rise during the search; the paper takes 40 steps at each of 50.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.attacks import UnlearnDiffAtkConfig
from ..models.text_encoder import embedding_table
from .base import AttackOutput, TokenAttack
from .gradient_attack import DenoisingAttack
from .prompt_slots import prefix_slots
from .search_spaces import TokenSimplex
from .vocabulary import PromptRow, describe_prefix


def find_level(step: int, steps: int, timesteps: int) -> float:
    """Return the noise level, from 0 to 1, of a step, from 0: `timesteps` levels in ascending order.

    Each level has an equal part of the steps; it lies in the middle of its part of the schedule, as published. With
    fewer steps than timesteps, some are left out.
    """
    return (min(step * timesteps // max(1, steps), timesteps - 1) + 0.5) / timesteps


class UnlearnDiffAtk(TokenAttack, DenoisingAttack):
    """Tokens in front of the prompt, searched on the simplex over the vocabulary by projected Adam."""

    name = "unlearndiffatk"
    config_class = UnlearnDiffAtkConfig
    config: UnlearnDiffAtkConfig
    search: TokenSimplex

    def start(self) -> None:
        """Start from equal or random weights."""
        tokens = self.config.tokens
        self.slots = prefix_slots(self.context.targets.ids, tokens, self.context.tokenizer)
        table = embedding_table(self.context.encoder).detach()
        vocabulary = self.find_vocabulary(self.config.vocabulary)
        self.search = TokenSimplex(table, vocabulary, len(self.slots), tokens, self.starts, self.config.start)
        self.optimizer = torch.optim.Adam(
            [self.search.parameter], lr=self.config.lr, weight_decay=self.config.weight_decay
        )

    def draw(self, generator: torch.Generator, level: float | None = None) -> tuple[Tensor, ...]:
        """Draw noised targets: x_t, t, noise."""
        if level is None and self.config.timesteps:
            level = find_level(self.steps_taken, self.config.steps, self.config.timesteps)
        return super().draw(generator, level)

    def current_point(self) -> Tensor:
        """Return the most likely tokens (N, k)."""
        return self.search.token_ids()

    def embed_point(self, point: Tensor) -> Tensor:
        """Return the embeddings of tokens (N, k)."""
        return self.embed_tokens(point)

    def token_ids(self) -> Tensor:
        """Return the best prefix (N, k)."""
        return self.best_point()

    def result(self) -> AttackOutput:
        """Return the conditioning of the prompts; with the whole vocabulary of their text, tokenized again.

        As published: a token that cannot be typed is searched, but what counts is the image of the text.
        """
        if self.config.vocabulary == "typed":
            return super().result()
        with torch.no_grad():
            conditioning = self.context.encode([row["prompt"] for row in self.prompts()])
        return AttackOutput(conditioning, self.embed_tokens(self.token_ids()))

    def prompts(self) -> list[PromptRow]:
        """Return prefix and prompt of each case; with the whole vocabulary some prefixes are not `exact`."""
        pairs = zip(self.token_ids(), self.context.prompts, strict=True)
        return [describe_prefix(self.context.tokenizer, prefix, prompt) for prefix, prompt in pairs]
