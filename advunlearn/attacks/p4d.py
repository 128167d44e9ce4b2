"""Prompting4Debugging, P4D (Chin et al., arXiv 2309.06135).

A white-box attack that has the original model too: hard tokens, searched as PEZ does, are to make the erased model
predict the noise that the original model predicts for the concept's prompt,
|| eps(x_t, t | c') - eps_o(x_t, t | c) ||^2, on noised pictures of the concept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.attacks import P4DConfig
from ..losses import attack_loss
from ..models.ddim import scale_batch
from .prompt_slots import PromptSlots, free_slots, interleaved_slots
from .token_attacks import HardPrompt, noised


class P4DN(HardPrompt[P4DConfig]):
    """P4D-N: a free prompt of N tokens in place of the concept's."""

    name, config_class = "p4d_n", P4DConfig
    needs = ("pictures", "original encoder", "original denoiser")

    def places(self) -> PromptSlots:
        """Return prompts of places alone."""
        return free_slots(self.scene.target.ids, self.config.tokens, self.scene.tokenizer)

    def start(self) -> None:
        """Keep what the original model is asked."""
        super().start()
        self.asked = self.scene.encode(self.scene.prompts, self.scene.original.encoder)

    def draw(self) -> tuple[Tensor, ...]:
        """Draw noised targets; return them with the original model's predictions."""
        x_t, t, _ = noised(self)
        original = self.scene.original.denoiser
        assert original is not None  # `needs`
        size = scale_batch(self.chunk, x_t)
        parts = zip(x_t.split(size), t.split(size), self.asked.split(size), strict=True)
        with torch.no_grad():
            return x_t, t, torch.cat([original.noise_pred(*part) for part in parts])

    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return || eps(x_t, t | c') - eps_o(x_t, t | c) ||^2."""
        x_t, t, eps_o = drawn
        context = self.slots.rows(rows).encode(self.scene.encoder, embeddings)
        return attack_loss(self.scene.denoiser.noise_pred(x_t, t, context), eps_o)


class P4DK(P4DN):
    """P4D-K: the concept's prompt, with a token of the search in front of every K of its words."""

    name = "p4d_k"

    def places(self) -> PromptSlots:
        """Return the prompts with places between their words."""
        return interleaved_slots(self.scene.prompts, self.config.every, self.scene.tokenizer, self.scene.device)
