"""Features of prompts, the encoder's output at the end of text, which PEZ and MMA compare."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config.attacks import Through
from ..models.prompt_tokens import end_position
from ..models.text_encoder import encode
from .base import AttackContext
from .prompt_slots import PromptSlots


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
