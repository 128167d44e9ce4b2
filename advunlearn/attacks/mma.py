"""MMA-Diffusion's attack on text (Yang et al., arXiv 2311.17516).

The search is for a prompt without any forbidden word whose feature has the direction of the concept's. Each step
computes the gradient in the one-hot token of every slot, draws swaps of single tokens among those with the lowest
gradient, and moves to the best of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.attacks import MMAConfig
from ..errors import AdvUnlearnError
from ..models.text_encoder import embedding_table
from .base import TokenAttack
from .best import BestPoints
from .features import choose_encoder, cosine_distance, encode_end_of_text, encode_target_features
from .prompt_slots import PromptSlots, free_slots
from .vocabulary import exclude_words


def draw_swaps(tokens: Tensor, gradient: Tensor, count: int, top: int, generator: torch.Generator) -> Tensor:
    """Return `count` variants of each of N prompts, each with one token swapped.

    Args:
        tokens: (N, k) token indices, rows of the vocabulary that the gradient is over.
        gradient: (N, k, V) gradient of the loss with respect to the one-hot tokens.
        count: variants per prompt; the swaps are spread evenly over the slots.
        top: draw the new token among the N tokens of its slot with the lowest gradient.
        generator: source of the draws.

    Returns:
        (N, count, k) token indices.
    """
    size, k = tokens.shape
    best = (-gradient).topk(min(top, gradient.shape[-1]), dim=-1).indices  # (N, k, top)
    slot = (torch.arange(count) * k // count).to(tokens.device)  # (count,)
    drawn = torch.randint(best.shape[-1], (size, count), generator=generator).to(tokens.device)
    new = best[:, slot].gather(-1, drawn[..., None])  # (N, count, 1)
    return tokens[:, None].repeat(1, count, 1).scatter(-1, slot.expand(size, -1)[..., None], new)


class MMA(TokenAttack):
    """Token swaps by gradient, with a mask of forbidden words."""

    name = "mma"
    needs = ("original encoder", "concept", "one encoder")
    config_class = MMAConfig
    config: MMAConfig
    chunk = 256  # prompts encoded together

    def start(self) -> None:
        """Start from random allowed tokens."""
        context = self.context
        config = self.config
        self.set_vocabulary()
        self.slots = free_slots(context.targets.ids, config.tokens, context.tokenizer)
        self.encoder = choose_encoder(context, config.through)
        self.table = embedding_table(self.encoder).detach()[self.allowed.to(context.device)].float()  # (V, D)
        shape = (len(self.slots), config.tokens)
        self.tokens = torch.randint(len(self.allowed), shape, generator=self.starts).to(context.device)
        self.best = BestPoints(self.tokens)
        self.target_features = encode_target_features(context)

    def set_vocabulary(self) -> None:
        """Set the tokens that are searched and those that replace untypable ones, without forbidden words."""
        assert self.context.concept is not None  # see `needs`
        words = self.config.forbidden_words(self.context.concept.name)
        tokenizer = self.context.tokenizer
        self.allowed = exclude_words(self.find_vocabulary(self.config.vocabulary), words, tokenizer)
        self.allowed_typable = exclude_words(super().typable_tokens(), words, tokenizer)
        if not len(self.allowed) or not len(self.allowed_typable):
            raise AdvUnlearnError(f"forbidden is {', '.join(words)}: no token is left to search; forbid fewer words")

    def typable_tokens(self) -> Tensor:
        """Return the typable tokens that are not forbidden."""
        return self.allowed_typable

    def losses(self, slots: PromptSlots, embeddings: Tensor, target_features: Tensor) -> Tensor:
        """Return 1 - cos(f(c'), f_o(c)), (n,)."""
        features = encode_end_of_text(self.encoder, slots, embeddings, self.context.targets.eos)
        return cosine_distance(features, target_features)

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Return the gradient (N, k, V) with respect to the one-hot tokens, and the losses (N,)."""
        x = self.table[self.tokens].requires_grad_(True)
        losses = self.losses(self.slots, x, self.target_features)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        return gradient @ self.table.T, losses.detach()

    @torch.no_grad()
    def compare(self, variants: Tensor) -> Tensor:
        """Return the losses (N, count) of variants (N, count, k)."""
        count = variants.shape[1]
        flat = variants.flatten(0, 1)
        parts = []
        for rows in torch.arange(len(flat), device=flat.device).split(self.chunk):
            cases = rows // count
            parts.append(self.losses(self.slots.rows(cases), self.table[flat[rows]], self.target_features[cases]))
        return torch.cat(parts).view(-1, count)

    def step(self) -> Tensor:
        """Move to the best of the drawn swaps, even if it is worse than the current prompt; update the best prompt."""
        gradient, losses = self.gradient()
        self.best.update(self.tokens, losses)
        variants = draw_swaps(self.tokens, gradient, self.config.candidates, self.config.top, self.generator)
        lowest, index = self.compare(variants).min(1)
        self.tokens = variants[torch.arange(len(variants), device=index.device), index]
        self.best.update(self.tokens, lowest)
        return losses.float().cpu()

    def token_ids(self) -> Tensor:
        """Return the best prompts' tokens."""
        return self.make_typable(self.allowed[self.best.points.cpu()])

    def objective(self) -> Tensor:
        """Return 1 - cos(f(c'), f_o(c)) of the best prompts (N,)."""
        return self.compare(self.best.points[:, None]).flatten()
