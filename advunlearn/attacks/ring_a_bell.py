"""Ring-A-Bell (Tsai et al., arXiv 2310.10012).

A black-box attack: it uses the original text encoder and nothing of the attacked model. The concept is represented by a
vector, the mean difference between the encodings of prompts with and without it. A genetic search finds the tokens
whose conditioning is nearest to the prompt's plus that vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config.attacks import RingABellConfig
from ..config.concept import SUBJECTS, ConceptConfig
from ..models.text_encoder import encode
from .base import TokenAttack
from .prompt_slots import free_slots


def make_prompt_pairs(concept: ConceptConfig) -> list[tuple[str, str]]:
    """Return pairs of a prompt with the concept and the same prompt without it.

    A style is removed from its subjects; any other concept is replaced by each of `config.SUBJECTS`.
    """
    if concept.kind == "style":
        return list(zip(concept.prompts, concept.anchors, strict=True))
    subjects = ConceptConfig(concept="\n".join(SUBJECTS)).prompts
    templates = ("{}", "a photo of {}")
    return [(t.format(p), t.format(s)) for p in concept.prompts for t in templates for s in subjects if s != p]


def concept_vector(with_concept: Tensor, without_concept: Tensor) -> Tensor:
    """Return the mean over P pairs of f(with) - f(without): (P, L, D), (P, L, D) -> (L, D)."""
    return (with_concept - without_concept).mean(0)


def cross_over(parents: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Return the parents (P, k) and, for about `rate` of them, both children with a random mate."""
    count, size = parents.shape
    chosen = (torch.rand(count, generator=generator) < rate).nonzero().flatten()
    mates = torch.randint(count, (len(chosen),), generator=generator)
    cut = torch.randint(size, (len(chosen), 1), generator=generator)  # number of tokens from the first parent
    from_first = torch.arange(size) < cut
    a = parents[chosen]
    b = parents[mates]
    return torch.cat([parents, torch.where(from_first, a, b), torch.where(from_first, b, a)])


def mutate(prompts: Tensor, rate: float, vocabulary: Tensor, generator: torch.Generator) -> Tensor:
    """Return prompts (P, k) in which about `rate` of the rows have one token replaced by a random one of (V,)."""
    count, size = prompts.shape
    changed = torch.rand(count, 1, generator=generator) < rate
    slot = torch.randint(size, (count, 1), generator=generator)
    new = vocabulary[torch.randint(len(vocabulary), (count, 1), generator=generator)]
    return torch.where(changed & (torch.arange(size) == slot), new, prompts)


def select_best(prompts: Tensor, losses: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` distinct prompts of (P, k) with the lowest losses (P,), in order, and their losses."""
    distinct: dict[tuple[int, ...], int] = {}
    for row in losses.argsort(stable=True).tolist():
        distinct.setdefault(tuple(prompts[row].tolist()), row)
    rows = list(distinct.values())[:count]
    return prompts[rows], losses[rows]


class RingABell(TokenAttack):
    """A genetic search per distinct prompt; cases with the same prompt get its best, second best, ... result."""

    name = "ring_a_bell"
    needs = ("original encoder", "concept", "one encoder")
    config_class = RingABellConfig
    config: RingABellConfig
    chunk = 256  # prompts encoded together

    def start(self) -> None:
        """Start from random prompts; compute the targets."""
        context = self.context
        config = self.config
        assert context.concept is not None  # see `needs`
        self.vocabulary = self.find_vocabulary(config.vocabulary)
        self.slots = free_slots(context.targets.ids, config.tokens, context.tokenizer)
        distinct = list(dict.fromkeys(context.prompts))
        self.prompt_index = [distinct.index(p) for p in context.prompts]  # case -> distinct prompt
        self.rank = [self.prompt_index[:n].count(p) for n, p in enumerate(self.prompt_index)]
        vector = self.encode_concept(make_prompt_pairs(context.concept))
        self.targets = self.encode_original(distinct) + config.strength * vector
        self.populations = [self.draw_population() for _ in distinct]
        self.losses = [self.distances(*each) for each in zip(self.populations, self.targets, strict=True)]
        # The best of all generations, as many as there are cases of the prompt.
        counts = [self.prompt_index.count(n) for n in range(len(distinct))]
        self.best = [select_best(*each) for each in zip(self.populations, self.losses, counts, strict=True)]

    def draw_population(self) -> Tensor:
        """Draw random prompts (population, k)."""
        shape = (self.config.population, self.config.tokens)
        return self.vocabulary[torch.randint(len(self.vocabulary), shape, generator=self.starts)]

    def encode_original(self, prompts: Sequence[str]) -> Tensor:
        """Return the original encoder's conditioning (B, positions, D)."""
        return self.context.encode(prompts, self.context.reference.encoder)[:, : self.config.positions]

    def encode_concept(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Return the concept's vector (positions, D)."""
        prompts = list(dict.fromkeys(prompt for pair in pairs for prompt in pair))
        encoded = dict(zip(prompts, self.encode_original(prompts), strict=True))
        with_concept = torch.stack([encoded[prompt] for prompt, _ in pairs])
        without_concept = torch.stack([encoded[prompt] for _, prompt in pairs])
        return concept_vector(with_concept, without_concept)

    @torch.no_grad()
    def distances(self, prompts: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared distances (P,) of prompts (P, k) from a target (positions, D)."""
        encoder = self.context.reference.encoder
        assert encoder is not None  # see `needs`
        parts = []
        for part in prompts.split(self.chunk):
            slots = self.slots.rows(torch.zeros(len(part), dtype=torch.long))
            hidden = encode(encoder, slots.fill(part)[:, : len(target)])
            parts.append((hidden - target).square().flatten(1).mean(1).float().cpu())
        return torch.cat(parts)

    def step(self) -> Tensor:
        """Breed a generation of each population."""
        losses = [self.breed(n) for n in range(len(self.populations))]
        return torch.tensor([losses[n] for n in self.prompt_index])

    def breed(self, n: int) -> float:
        """Let the better half of population n survive, cross over and mutate; return the lowest distance before it."""
        config = self.config
        lowest = float(self.losses[n].min())
        order = self.losses[n].argsort(stable=True)
        survivors = self.populations[n][order[: max(1, config.population // 2)]]
        children = cross_over(survivors, config.crossover, self.generator)
        self.populations[n] = mutate(children, config.mutation, self.vocabulary, self.generator)
        self.losses[n] = self.distances(self.populations[n], self.targets[n])
        best, losses = self.best[n]
        together = torch.cat([best, self.populations[n]]), torch.cat([losses, self.losses[n]])
        self.best[n] = select_best(*together, len(best))
        return lowest

    def token_ids(self) -> Tensor:
        """Return the best prompt of each case; cases that share a prompt get the best, the second best, and so on."""
        return self.make_typable(torch.stack([row for row, _ in self.ranked()]))

    def objective(self) -> Tensor:
        """Return the distances of the prompts (N,) from their targets."""
        return torch.stack([loss for _, loss in self.ranked()])

    def ranked(self) -> list[tuple[Tensor, Tensor]]:
        """Return the tokens (k,) and the distance () of each of N cases."""
        rows = []
        for n, rank in zip(self.prompt_index, self.rank, strict=True):
            tokens, losses = self.best[n]
            rows.append((tokens[rank % len(tokens)], losses[rank % len(tokens)]))
        return rows
