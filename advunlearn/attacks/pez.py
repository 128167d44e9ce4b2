"""PEZ (Wen et al., arXiv 2302.03668), "Hard Prompts Made Easy", from a text: prompt distillation.

A hard prompt whose feature, the encoder's output at the end of text, points where the original encoder's feature of the
concept's prompt points. It reads encoders alone, no denoiser and no picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config.attacks import PEZConfig, Through
from ..models.prompt_tokens import end_position
from ..models.text_encoder import encode
from .base import AttackContext
from .prompt_slots import PromptSlots, free_slots
from .token_attacks import HardPrompt


def pooled(encoder: Any, slots: PromptSlots, embeddings: Tensor, eos: int) -> Tensor:
    """Return the outputs (N, D) at the end of text of prompts with embeddings (N, k, D) in their places."""
    ends = end_position(slots.ids, eos)
    hidden = slots.truncate(int(ends.max()) + 1).encode(encoder, embeddings)
    return hidden[torch.arange(len(ends), device=hidden.device), ends]


def wanted(scene: AttackContext) -> Tensor:
    """Return what the original encoder says of the scene's prompts at the end of text (N, D)."""
    ids = scene.target.ids
    ends = end_position(ids, scene.target.eos)
    with torch.no_grad():
        hidden = encode(scene.original.encoder, ids[:, : int(ends.max()) + 1])
    return hidden[torch.arange(len(ends), device=hidden.device), ends]


def followed(scene: AttackContext, through: Through) -> Any:
    """Return the encoder whose gradient a search follows: the attacked one, or the original one."""
    return scene.encoder if through == "attacked" else scene.original.encoder


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cos(a, b) over the last dimension."""
    return 1 - nn.functional.cosine_similarity(a, b, dim=-1)


class PEZ(HardPrompt[PEZConfig]):
    """A prompt of hard tokens that means, to the attacked encoder, what the concept's prompt meant to the original."""

    name, config_class = "pez", PEZConfig
    needs, keeps_best = ("original encoder", "one encoder"), True

    def searched_encoder(self) -> Any:
        """Return the attacked encoder, or the original one."""
        return followed(self.scene, self.config.through)

    def places(self) -> PromptSlots:
        """Return prompts of places alone; keep what they are to mean."""
        self.target = wanted(self.scene)
        return free_slots(self.scene.target.ids, self.config.tokens, self.scene.tokenizer)

    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return 1 - cos(f(c'), f_o(c))."""
        feature = pooled(self.searched_encoder(), self.slots.rows(rows), embeddings, self.scene.target.eos)
        return distance(feature, self.target[rows])
