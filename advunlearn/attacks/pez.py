"""PEZ, "Hard Prompts Made Easy" (Wen et al., arXiv 2302.03668), as prompt distillation.

The search is for a hard prompt whose feature, the encoder's output at the end of text, has the direction of the
original encoder's feature of the concept's prompt. It uses text encoders only: no denoiser and no image.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from ..config.attacks import HardPromptConfig, PEZConfig, Through
from ..models.prompt_tokens import end_position
from ..models.text_encoder import embedding_table, encode
from .base import AttackContext, TokenAttack
from .gradient_attack import GradientAttack
from .prompt_slots import PromptSlots, free_slots
from .search_spaces import NearestTokens


def encode_end_of_text(encoder: nn.Module, slots: PromptSlots, embeddings: Tensor, eos: int) -> Tensor:
    """Return the encoder's outputs (N, D) at the end of text, for prompts with embeddings (N, k, D) in their slots."""
    ends = end_position(slots.ids, eos)
    hidden = slots.truncate(int(ends.max()) + 1).encode(encoder, embeddings)
    return hidden[torch.arange(len(ends), device=hidden.device), ends]


@torch.no_grad()
def encode_target_features(context: AttackContext) -> Tensor:
    """Return the original encoder's outputs (N, D) at the end of text, for the context's prompts."""
    assert context.reference.encoder is not None  # see `Attack.needs`
    ids = context.targets.ids
    ends = end_position(ids, context.targets.eos)
    hidden = encode(context.reference.encoder, ids[:, : int(ends.max()) + 1])
    return hidden[torch.arange(len(ends), device=hidden.device), ends]


def choose_encoder(context: AttackContext, through: Through) -> nn.Module:
    """Return the encoder whose gradient a search follows: the attacked one, or the original one."""
    if through == "attacked":
        return context.encoder
    assert context.reference.encoder is not None  # see `Attack.needs`
    return context.reference.encoder


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cos(a, b) over the last dimension."""
    return 1 - nn.functional.cosine_similarity(a, b, dim=-1)


class HardPromptAttack(TokenAttack, GradientAttack):
    """A search for hard tokens by PEZ's projected gradient, with AdamW."""

    search: NearestTokens
    config: HardPromptConfig

    @abc.abstractmethod
    def make_slots(self) -> PromptSlots:
        """Return the prompts with their slots."""

    def searched_encoder(self) -> nn.Module:
        """Return the encoder whose embedding table is searched."""
        return self.context.encoder

    def start(self) -> None:
        """Start from random tokens."""
        self.slots = self.make_slots()
        table = embedding_table(self.searched_encoder())
        vocabulary = self.find_vocabulary(self.config.vocabulary)
        self.search = NearestTokens(table, vocabulary, len(self.slots), self.slots.at.shape[1], self.starts)
        self.optimizer = torch.optim.AdamW(
            [self.search.parameter], lr=self.config.lr, weight_decay=self.config.weight_decay
        )

    def current_point(self) -> Tensor:
        """Return the nearest tokens (N, k) that can be typed."""
        return self.make_typable(self.search.token_ids())

    def embed_point(self, point: Tensor) -> Tensor:
        """Return the searched encoder's embeddings of tokens (N, k)."""
        table = embedding_table(self.searched_encoder()).detach()
        return table[point.to(table.device)].float()

    def token_ids(self) -> Tensor:
        """Return the best tokens (N, k)."""
        return self.best_point()


class PEZ(HardPromptAttack):
    """A prompt of hard tokens whose feature is the original one of the concept's prompt."""

    name = "pez"
    needs = ("original encoder", "one encoder")
    config_class = PEZConfig
    config: PEZConfig
    has_draws = False

    def searched_encoder(self) -> nn.Module:
        """Return the attacked encoder, or the original one."""
        return choose_encoder(self.context, self.config.through)

    def make_slots(self) -> PromptSlots:
        """Return free prompts; set the target features."""
        self.target_features = encode_target_features(self.context)
        return free_slots(self.context.targets.ids, self.config.tokens, self.context.tokenizer)

    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return 1 - cos(f(c'), f_o(c)), (n,)."""
        slots = self.slots.rows(rows)
        features = encode_end_of_text(self.searched_encoder(), slots, embeddings, self.context.targets.eos)
        return cosine_distance(features, self.target_features[rows])
