"""Seed search, a baseline of UnlearnDiffAtk (Zhang et al., arXiv 2310.11868): the plain prompt with other noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.attacks import SeedSearchConfig
from ..models.ddim import draw_noise
from ..models.tokenizer import tokenize
from .base import Attack, AttackOutput
from .prompt_slots import content_tokens
from .vocabulary import PromptRow


class PlainPromptAttack(Attack):
    """An attack with ordinary prompts, in which nothing is searched token by token."""

    def start(self) -> None:
        """Encode the first prompts."""
        self.steps_taken = 0
        self.conditioning = self.context.encode(self.current_prompts())

    def current_prompts(self) -> list[str]:
        """Return the current prompts (N)."""
        return list(self.context.prompts)

    def step(self) -> Tensor:
        """Count the step."""
        self.steps_taken += 1
        return torch.full((len(self.context.prompts),), torch.nan)

    def result(self) -> AttackOutput:
        """Return the prompts' conditioning, without searched embeddings."""
        none = self.conditioning.new_zeros(len(self.conditioning), 0, self.conditioning.shape[-1])
        return AttackOutput(self.conditioning, none)

    def prompts(self) -> list[PromptRow]:
        """Return the prompts and all their tokens; they are exact because they were written as text."""
        tokenizer = self.context.tokenizer
        prompts = self.current_prompts()
        rows = content_tokens(tokenize(tokenizer, prompts), tokenizer)
        return [
            {"prompt": prompt, "tokens": tokenizer.convert_ids_to_tokens(row), "exact": True}
            for prompt, row in zip(prompts, rows, strict=True)
        ]


class SeedSearch(PlainPromptAttack):
    """The plain prompt with new initial noise in each step."""

    name = "seed_search"
    config_class = SeedSearchConfig
    config: SeedSearchConfig

    def start(self) -> None:
        """Draw the first noise."""
        super().start()
        self.draw(self.starts)

    def draw(self, generator: torch.Generator) -> None:
        """Draw a seed for each case, and noise from it, so that the seed alone reproduces the image."""
        count, *shape = self.context.targets.x_0.shape
        self.seeds: list[int] = torch.randint(2**32, (count,), generator=generator).tolist()
        self.noise = torch.stack([draw_noise(seed, shape) for seed in self.seeds])  # (N, C, h, w)

    def step(self) -> Tensor:
        """Draw new noise."""
        self.draw(self.generator)
        return super().step()

    def prompts(self) -> list[PromptRow]:
        """Return the prompts and the seeds of their noise."""
        return [row | {"noise_seed": seed} for row, seed in zip(super().prompts(), self.seeds, strict=True)]

    def result(self) -> AttackOutput:
        """Return the prompts' conditioning and the initial noise."""
        plain = super().result()
        return AttackOutput(plain.conditioning, plain.embeddings, self.noise.to(self.context.device))
