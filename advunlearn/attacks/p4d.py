"""Prompting4Debugging, P4D (Chin et al., arXiv 2309.06135).

A white-box attack that also uses the original model: it searches hard tokens with which the erased model predicts the
same noise as the original model with the concept's prompt, by the loss || eps(x_t, t | c') - eps_o(x_t, t | c) ||^2 on
noised images of the concept. The search is PEZ's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.attacks import P4DConfig
from ..losses import attack_loss
from ..models.ddim import scale_batch
from .gradient_attack import HardPromptAttack, noise_targets
from .prompt_slots import PromptSlots, free_slots, interleaved_slots


class P4DN(HardPromptAttack):
    """P4D-N: a free prompt of N tokens instead of the concept's prompt."""

    name = "p4d_n"
    needs = ("target images", "original encoder", "original denoiser")
    config_class = P4DConfig
    config: P4DConfig

    def make_slots(self) -> PromptSlots:
        """Return free prompts."""
        return free_slots(self.context.targets.ids, self.config.tokens, self.context.tokenizer)

    def start(self) -> None:
        """Encode the prompts for the original model as well."""
        super().start()
        self.reference_conditioning = self.context.encode(self.context.prompts, self.context.reference.encoder)

    def draw(self, generator: torch.Generator, level: float | None = None) -> tuple[Tensor, ...]:
        """Draw noised targets: x_t, t, and the original model's noise predictions."""
        x_t, t, _ = noise_targets(self, generator, level)
        denoiser = self.context.reference.denoiser
        assert denoiser is not None  # see `needs`
        size = scale_batch(self.chunk, x_t)
        parts = zip(x_t.split(size), t.split(size), self.reference_conditioning.split(size), strict=True)
        with torch.no_grad():
            return x_t, t, torch.cat([denoiser.noise_pred(*part) for part in parts])

    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return || eps(x_t, t | c') - eps_o(x_t, t | c) ||^2, (n,)."""
        x_t, t, reference_pred = drawn
        conditioning = self.slots.rows(rows).encode(self.context.encoder, embeddings)
        return attack_loss(self.context.denoiser.noise_pred(x_t, t, conditioning), reference_pred)


class P4DK(P4DN):
    """P4D-K: the concept's prompt with a searched token in front of every K-th word."""

    name = "p4d_k"

    def make_slots(self) -> PromptSlots:
        """Return the prompts with slots between their words."""
        context = self.context
        return interleaved_slots(context.prompts, self.config.word_interval, context.tokenizer, context.device)
