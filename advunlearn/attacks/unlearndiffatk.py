"""UnlearnDiffAtk (Zhang et al., arXiv 2310.11868): adversarial tokens in front of the prompt.

It needs no original model. Its target is an image of the concept, and its loss is the denoising loss
|| noise - eps(x_t, t | c') ||^2 of the attacked model. Each case (prompt, seed, target) has its own prefix. The paper
takes up to 40 steps at each of 50 timesteps in turn; here each step draws its timestep.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..config.attacks import UnlearnDiffAtkConfig
from ..models.text_encoder import embedding_table
from .base import AttackOutput, DenoisingAttack, TokenAttack
from .prompt_slots import prefix_slots
from .search_spaces import TokenSimplex
from .vocabulary import PromptRow, describe_prefix


class UnlearnDiffAtk(TokenAttack, DenoisingAttack):
    """Tokens in front of the prompt, searched on the simplex over the vocabulary by projected Adam."""

    name = "unlearndiffatk"
    config_class = UnlearnDiffAtkConfig
    config: UnlearnDiffAtkConfig
    search: TokenSimplex

    def start(self) -> None:
        """Start from random weights."""
        tokens = self.config.tokens
        self.slots = prefix_slots(self.context.targets.ids, tokens, self.context.tokenizer)
        table = embedding_table(self.context.encoder).detach()
        vocabulary = self.find_vocabulary(self.config.vocabulary)
        self.search = TokenSimplex(table, vocabulary, len(self.slots), tokens, self.starts)
        self.optimizer = torch.optim.Adam([self.search.parameter], lr=self.config.lr)

    def token_ids(self) -> Tensor:
        """Return the most likely tokens."""
        return self.search.token_ids()

    def result(self) -> AttackOutput:
        """Return the conditioning of the prompts; with the whole vocabulary of their text, tokenized again.

        As published: a token that cannot be typed is searched, but what counts is the image of the text.
        """
        output = super().result()
        if self.config.vocabulary == "typed":
            return output
        with torch.no_grad():
            return replace(output, conditioning=self.context.encode([row["prompt"] for row in self.prompts()]))

    def prompts(self) -> list[PromptRow]:
        """Return prefix and prompt of each case; with the whole vocabulary some prefixes are not `exact`."""
        pairs = zip(self.token_ids(), self.context.prompts, strict=True)
        return [describe_prefix(self.context.tokenizer, prefix, prompt) for prefix, prompt in pairs]
