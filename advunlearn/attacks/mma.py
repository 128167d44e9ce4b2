"""MMA-Diffusion's attack on text (Yang et al., arXiv 2311.17516).

A prompt without any of the forbidden words whose feature points where the concept's does. Each step takes the gradient
in every place's one-hot token, draws swaps of one token among those that it favours most, and goes to the best of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.attacks import MMAConfig
from ..errors import AdvUnlearnError
from ..models.text_encoder import embedding_table
from .pez import distance, followed, pooled, wanted
from .prompt_slots import PromptSlots, free_slots
from .token_attacks import TokenAttack
from .vocabulary import without


def swaps(tokens: Tensor, gradient: Tensor, count: int, top: int, generator: torch.Generator) -> Tensor:
    """Return `count` prompts for each of N, each with one token swapped.

    Args:
        tokens: (N, k) token numbers, rows of the vocabulary that the gradient is over.
        gradient: (N, k, V) of the loss in the one-hot tokens.
        count: prompts for each; the swaps go evenly over the places.
        top: the new token is drawn among so many of its place's least gradients.
        generator: source of the draws.

    Returns:
        (N, count, k) token numbers.
    """
    size, places = tokens.shape
    best = (-gradient).topk(min(top, gradient.shape[-1]), dim=-1).indices  # (N, k, top)
    place = (torch.arange(count) * places // count).to(tokens.device)
    drawn = torch.randint(best.shape[-1], (size, count), generator=generator).to(tokens.device)
    new = best[:, place].gather(-1, drawn[..., None])  # (N, count, 1)
    return tokens[:, None].repeat(1, count, 1).scatter(-1, place.expand(size, -1)[..., None], new)


class MMA(TokenAttack[MMAConfig]):
    """Token swaps by gradient, with a mask of forbidden words."""

    name, config_class = "mma", MMAConfig
    needs = ("original encoder", "concept", "one encoder")
    chunk = 256  # prompts encoded together

    def start(self) -> None:
        """Start from random tokens that are allowed."""
        scene, config = self.scene, self.config
        assert scene.concept is not None  # `needs`
        words = config.words(scene.concept.concept)
        self.allowed = without(self.vocabulary(config.vocabulary), words, scene.tokenizer)
        self.stand_ins = without(super().typed(), words, scene.tokenizer)
        if not len(self.allowed) or not len(self.stand_ins):
            raise AdvUnlearnError(f"forbidden is {', '.join(words)}: no token is left to search; forbid fewer words")
        self.slots = free_slots(scene.target.ids, config.tokens, scene.tokenizer)
        self.encoder = followed(scene, config.through)
        self.table = embedding_table(self.encoder).detach()[self.allowed.to(scene.device)].float()
        shape = (len(self.slots), config.tokens)
        self.tokens = torch.randint(len(self.allowed), shape, generator=self.starts).to(scene.device)
        self.best, self.least = self.tokens.clone(), torch.full((len(self.tokens),), torch.inf, device=scene.device)
        self.target = wanted(scene)

    def typed(self) -> Tensor:
        """Return those that are not forbidden."""
        return self.stand_ins

    def losses(self, slots: PromptSlots, embeddings: Tensor, target: Tensor) -> Tensor:
        """Return 1 - cos(f(c'), f_o(c)), (n,)."""
        return distance(pooled(self.encoder, slots, embeddings, self.scene.target.eos), target)

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Return the gradient (N, k, V) in the one-hot tokens, through their embeddings, and the losses (N,)."""
        x = self.table[self.tokens].requires_grad_(True)
        losses = self.losses(self.slots, x, self.target)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        return gradient @ self.table.T, losses.detach()

    @torch.no_grad()
    def tried(self, prompts: Tensor) -> Tensor:
        """Return the losses (N, count) of prompts (N, count, k)."""
        flat, count = prompts.flatten(0, 1), prompts.shape[1]
        parts = []
        for rows in torch.arange(len(flat), device=flat.device).split(self.chunk):
            of = rows // count
            parts.append(self.losses(self.slots.rows(of), self.table[flat[rows]], self.target[of]))
        return torch.cat(parts).view(-1, count)

    def step(self) -> Tensor:
        """Swap one token of each prompt for the best of those tried, better or not; remember the best prompt."""
        gradient, losses = self.gradient()
        self.remember(losses)
        prompts = swaps(self.tokens, gradient, self.config.candidates, self.config.top, self.generator)
        tried, index = self.tried(prompts).min(1)
        self.tokens = prompts[torch.arange(len(prompts), device=index.device), index]
        self.remember(tried)
        return losses.float().cpu()

    def remember(self, losses: Tensor) -> None:
        """Keep the current prompts (N, k) where their losses (N,) are the least so far."""
        better = losses < self.least
        self.best[better], self.least[better] = self.tokens[better], losses[better]

    def ids(self) -> Tensor:
        """Return the best prompt's tokens."""
        return self.typable(self.allowed[self.best.cpu()])
