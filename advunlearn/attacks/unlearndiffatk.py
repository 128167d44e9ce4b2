"""The test attack: UnlearnDiffAtk (Zhang et al., arXiv 2310.11868), discrete and as a bounded soft prefix.

It needs no original model: its target is a picture of the concept, and its loss is the denoising loss
|| noise - eps(noised x_0, t | c') ||^2 of the attacked model. Each case (prompt, seed, target) has a prefix of its own.
Published is a schedule of up to 40 steps at each of 50 timesteps in turn; here each step draws its timestep.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config.attacks import SoftPrefixConfig, UnlearnDiffAtkConfig
from ..models.text_encoder import embedding_table
from .base import AttackOutput
from .prompt_slots import prefix_slots
from .search_spaces import SoftSearch, TokenSearch
from .token_attacks import DenoisingAttack, TokenAttack, prefix_texts
from .vocabulary import search_vocabulary


class UnlearnDiffAtk(TokenAttack[UnlearnDiffAtkConfig], DenoisingAttack[UnlearnDiffAtkConfig]):
    """Tokens in front of the prompt, on the simplex over the vocabulary, by projected Adam."""

    name, config_class = "unlearndiffatk", UnlearnDiffAtkConfig
    search: TokenSearch

    def start(self) -> None:
        """Start from random weights."""
        scene, table = self.scene, embedding_table(self.scene.encoder).detach()
        self.slots = prefix_slots(scene.target.ids, self.config.tokens, scene.tokenizer)
        vocabulary = self.vocabulary(self.config.vocabulary)
        self.search = TokenSearch(table, vocabulary, len(self.slots), self.config.tokens, self.starts)
        self.optimizer = torch.optim.Adam([self.search.parameter], lr=self.config.lr)

    def ids(self) -> Tensor:
        """Return the most likely tokens."""
        return self.search.token_ids()

    def texts(self) -> list[dict[str, Any]]:
        """Return prefix and prompt; of the whole vocabulary not every prefix can be typed, and `exact` says so."""
        return prefix_texts(self)


class SoftPrefix(DenoisingAttack[SoftPrefixConfig]):
    """Embeddings in front of the prompt, in a ball around real tokens."""

    name, config_class, discrete = "soft_prefix", SoftPrefixConfig, False

    def start(self) -> None:
        """Start from random tokens."""
        scene, config, table = self.scene, self.config, embedding_table(self.scene.encoder).detach()
        self.slots = prefix_slots(scene.target.ids, config.tokens, scene.tokenizer)
        sigma, vocabulary = table.float().std().item(), search_vocabulary(scene.tokenizer)
        self.search = SoftSearch(table, vocabulary, len(self.slots), config.tokens, self.starts, config.radius * sigma)
        self.optimizer = torch.optim.Adam([self.search.parameter], lr=config.lr * sigma)

    def found(self) -> AttackOutput:
        """Return the prefix as it is."""
        with torch.no_grad():
            found = self.search.found()
            return AttackOutput(self.slots.encode(self.scene.encoder, found), found)
