"""Soft prefix: the loss of UnlearnDiffAtk over embeddings in a ball around real tokens."""

from __future__ import annotations

import torch

from ..config.attacks import SoftPrefixConfig
from ..models.text_encoder import embedding_table
from .base import AttackOutput
from .gradient_attack import DenoisingAttack
from .prompt_slots import prefix_slots
from .search_spaces import EmbeddingBall
from .vocabulary import search_vocabulary


class SoftPrefix(DenoisingAttack):
    """Embeddings in front of the prompt, in a ball around real tokens."""

    name = "soft_prefix"
    discrete = False
    config_class = SoftPrefixConfig
    config: SoftPrefixConfig

    def start(self) -> None:
        """Start from random tokens."""
        context = self.context
        config = self.config
        table = embedding_table(context.encoder).detach()
        sigma = table.float().std().item()
        self.slots = prefix_slots(context.targets.ids, config.tokens, context.tokenizer)
        vocabulary = search_vocabulary(context.tokenizer)
        radius = config.radius * sigma
        self.search = EmbeddingBall(table, vocabulary, len(self.slots), config.tokens, self.starts, radius)
        self.optimizer = torch.optim.Adam([self.search.parameter], lr=config.lr * sigma)

    def result(self) -> AttackOutput:
        """Return the prompts with the best prefix."""
        embeddings = self.best_point()
        with torch.no_grad():
            return AttackOutput(self.slots.encode(self.context.encoder, embeddings), embeddings)
