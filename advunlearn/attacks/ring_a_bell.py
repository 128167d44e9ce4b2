"""Ring-A-Bell (Tsai et al., arXiv 2310.10012).

A black-box attack: it knows the text encoder from which models are made, and nothing of the model attacked. What a
concept is to that encoder is a vector, the mean difference of prompts with and without it; a genetic search finds the
tokens whose conditioning is the nearest to the prompt's with that vector added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config.attacks import RingABellConfig
from ..config.concept import SUBJECTS, ConceptConfig
from ..models.text_encoder import encode
from .prompt_slots import free_slots
from .token_attacks import TokenAttack


def prompt_pairs(concept: ConceptConfig) -> list[tuple[str, str]]:
    """Return prompts with the concept, each with the same prompt without it.

    A style is taken off its subjects; anything else gives its place to each of `config.SUBJECTS`.
    """
    if concept.kind == "style":
        return list(zip(concept.prompts, concept.anchors, strict=True))
    other = ConceptConfig(concept="\n".join(SUBJECTS)).prompts
    templates = ("{}", "a photo of {}")
    return [(t.format(p), t.format(o)) for p in concept.prompts for t in templates for o in other if o != p]


def concept_vector(having: Tensor, lacking: Tensor) -> Tensor:
    """Return the mean over pairs of f(with) - f(without): (P, L, D), (P, L, D) -> (L, D)."""
    return (having - lacking).mean(0)


def crossed(parents: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Return the parents (P, k) and, of about `rate` of them, both children with a random mate."""
    count, size = parents.shape
    chosen = (torch.rand(count, generator=generator) < rate).nonzero().flatten()
    mates = torch.randint(count, (len(chosen),), generator=generator)
    cut = torch.randint(size, (len(chosen), 1), generator=generator)  # so many tokens come from the first
    first = torch.arange(size) < cut
    a, b = parents[chosen], parents[mates]
    return torch.cat([parents, torch.where(first, a, b), torch.where(first, b, a)])


def mutated(prompts: Tensor, rate: float, vocabulary: Tensor, generator: torch.Generator) -> Tensor:
    """Return prompts (P, k), about `rate` of which have one token drawn anew from the vocabulary (V,)."""
    count, size = prompts.shape
    changed = torch.rand(count, 1, generator=generator) < rate
    place = torch.randint(size, (count, 1), generator=generator)
    new = vocabulary[torch.randint(len(vocabulary), (count, 1), generator=generator)]
    return torch.where(changed & (torch.arange(size) == place), new, prompts)


class RingABell(TokenAttack[RingABellConfig]):
    """A genetic search for each prompt that differs; cases with the same prompt get the best, the second best, ..."""

    name, config_class = "ring_a_bell", RingABellConfig
    needs = ("original encoder", "concept", "one encoder")
    chunk = 256  # prompts encoded together

    def start(self) -> None:
        """Start from random prompts; keep what is to be reached."""
        scene, config = self.scene, self.config
        assert scene.concept is not None  # `needs`
        self.words = self.vocabulary(config.vocabulary)
        self.slots = free_slots(scene.target.ids, config.tokens, scene.tokenizer)
        distinct = list(dict.fromkeys(scene.prompts))
        self.prompt = [distinct.index(p) for p in scene.prompts]
        self.rank = [self.prompt[:n].count(p) for n, p in enumerate(self.prompt)]
        vector = self.vector(prompt_pairs(scene.concept))
        self.targets = self.original(distinct) + config.strength * vector
        shape = (config.population, config.tokens)
        self.populations = [self.words[torch.randint(len(self.words), shape, generator=self.starts)] for _ in distinct]
        self.survivors, self.least = list(self.populations), [torch.inf] * len(distinct)
        self.best = [p[0] for p in self.populations]

    def original(self, prompts: Sequence[str]) -> Tensor:
        """Return the original encoder's conditioning (B, positions, D)."""
        return self.scene.encode(prompts, self.scene.original.encoder)[:, : self.config.positions]

    def vector(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Return the concept's vector (positions, D)."""
        prompts = list(dict.fromkeys(prompt for pair in pairs for prompt in pair))
        said = dict(zip(prompts, self.original(prompts), strict=True))
        having, lacking = (torch.stack([said[p] for p in rows]) for rows in zip(*pairs, strict=True))
        return concept_vector(having, lacking)

    @torch.no_grad()
    def distances(self, prompts: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared distances (P,) of prompts (P, k) from a target (positions, D)."""
        template, parts = self.slots.rows(torch.zeros(1, dtype=torch.long)), []
        for part in prompts.split(self.chunk):
            ids = template.rows(torch.zeros(len(part), dtype=torch.long)).fill(part)[:, : len(target)]
            hidden = encode(self.scene.original.encoder, ids)
            parts.append((hidden - target).square().flatten(1).mean(1).float().cpu())
        return torch.cat(parts)

    def step(self) -> Tensor:
        """Let the better half of each population live, cross and change."""
        config, losses = self.config, []
        for n, population in enumerate(self.populations):
            scores = self.distances(population, self.targets[n])
            order = scores.argsort(stable=True)
            survivors, least = population[order[: max(1, config.population // 2)]], float(scores[order[0]])
            if least < self.least[n]:
                self.best[n], self.least[n] = survivors[0].clone(), least
            self.survivors[n], grown = survivors, crossed(survivors, config.crossover, self.generator)
            self.populations[n] = mutated(grown, config.mutation, self.words, self.generator)
            losses.append(least)
        return torch.tensor([losses[n] for n in self.prompt])

    def ids(self) -> Tensor:
        """Return for each case the best prompt found, and the next survivors where cases share a prompt."""
        rows = [
            self.survivors[n][rank % len(self.survivors[n])] if rank else self.best[n]
            for n, rank in zip(self.prompt, self.rank, strict=True)
        ]
        return self.typable(torch.stack(rows))
