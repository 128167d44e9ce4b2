"""Attacks that step by gradient: draw, gradient with respect to the embeddings, optimiser, projection.

A new attack defines its search space (`start`), its `loss` and its `result`. The loss of a step is of random draws, so
that losses of different steps cannot be compared. The points of a search are therefore compared on draws that stay the
same, and the result is the best of them, never worse than the start.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config.attacks import COMPARE_INTERVAL, HardPromptConfig, SearchConfig
from ..losses import denoising_loss
from ..models.ddim import scale_batch
from ..models.denoiser import add_noise
from ..models.text_encoder import embedding_table
from .base import Attack, AttackContext, SlotAttack, TokenAttack
from .best import BestPoints
from .prompt_slots import PromptSlots
from .search_spaces import NearestTokens, SearchSpace

COMPARED_LEVELS = 8  # noise levels at which points are compared


class GradientAttack(Attack):
    """An attack whose step is: draw, gradient with respect to the embeddings, optimiser, projection.

    `start` sets `search` and `optimizer`.
    """

    search: SearchSpace
    optimizer: torch.optim.Optimizer
    config: SearchConfig
    chunk = 64  # cases differentiated together, for latents of 8 x 8
    has_draws: ClassVar[bool] = True  # whether the loss depends on what is drawn

    def __init__(
        self,
        context: AttackContext,
        config: SearchConfig,
        generator: torch.Generator,
        starts: torch.Generator | None = None,
    ) -> None:
        super().__init__(context, config, generator, starts)
        self.steps_taken = 0
        self.compared_at = -1  # the step of the last comparison
        self.best = BestPoints(self.current_point())
        self.fixed_draws: list[tuple[Tensor, ...]] = []  # made when they are first needed

    def draw(self, generator: torch.Generator, level: float | None = None) -> tuple[Tensor, ...]:
        """Draw the random inputs of a step's losses; each tensor has a row per case.

        Args:
            generator: source of the draws.
            level: the timestep as a part of the schedule, from 0 to 1; random if None.
        """
        return ()

    @abc.abstractmethod
    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return the losses (n,) of the cases with indices `rows` (n,) at embeddings (n, k, D)."""

    def current_point(self) -> Tensor:
        """Return the current point (N, ...) as the result uses it: here embeddings (N, k, D)."""
        return self.search.result()

    def embed_point(self, point: Tensor) -> Tensor:
        """Return the embeddings (N, k, D) of a point."""
        return point

    def split_rows(self, count: int) -> tuple[Tensor, ...]:
        """Return the indices of `count` cases in chunks that bound memory."""
        return torch.arange(count).split(scale_batch(self.chunk, self.context.targets.x_0))

    def step(self) -> Tensor:
        """Compare the current point if it is time to, then take one step."""
        compares = self.config.keep == "best" and (not self.has_draws or self.steps_taken % COMPARE_INTERVAL == 0)
        if compares and self.has_draws:
            self.compare()
        drawn = self.draw(self.generator)
        x = self.search.embeddings()  # (N, k, D)
        gradient = torch.zeros_like(x)
        losses = torch.zeros(len(x))
        for rows in self.split_rows(len(x)):
            part = x.detach()[rows].requires_grad_(True)
            loss = self.loss(part, rows, *(d[rows] for d in drawn))
            (gradient[rows],) = torch.autograd.grad(loss.sum(), part)
            losses[rows] = loss.detach().float().cpu()
        if compares and not self.has_draws:
            self.compare((x.detach(), losses))
        self.optimizer.zero_grad()
        x.backward(gradient)
        self.optimizer.step()
        self.search.project()
        self.steps_taken += 1
        return losses

    def compare(self, known: tuple[Tensor, Tensor] | None = None) -> None:
        """Keep the current point where it is better than all compared before.

        Args:
            known: embeddings (N, k, D) and their losses (N,), of an attack without draws; used if they are the point's.
        """
        if self.compared_at != self.steps_taken:
            point = self.current_point()
            same = known is not None and torch.equal(self.embed_point(point), known[0])
            self.best.update(point, known[1] if known and same else self.compute_losses(point))
            self.compared_at = self.steps_taken

    @torch.no_grad()
    def compute_losses(self, point: Tensor) -> Tensor:
        """Return the mean losses (N,) of a point (N, ...) over the fixed draws."""
        if not self.fixed_draws:
            # A stream of its own: comparing must not change what the steps draw.
            generator = torch.Generator().manual_seed(self.generator.initial_seed() + 2)
            levels = COMPARED_LEVELS if self.has_draws else 1
            self.fixed_draws = [self.draw(generator, (k + 0.5) / levels) for k in range(levels)]
        embeddings = self.embed_point(point)
        total = torch.zeros(len(embeddings))
        for drawn in self.fixed_draws:
            for rows in self.split_rows(len(embeddings)):
                total[rows] += self.loss(embeddings[rows], rows, *(d[rows] for d in drawn)).float().cpu()
        return total / len(self.fixed_draws)

    def best_point(self) -> Tensor:
        """Return the point (N, ...) of the result: the best compared, or the current one if `keep` is last."""
        if self.config.keep == "last":
            return self.current_point()
        self.compare()
        return self.best.points

    def objective(self) -> Tensor:
        """Return the losses of the result (N,) on the fixed draws."""
        point = self.best_point()
        return self.best.losses if self.config.keep == "best" else self.compute_losses(point)


def noise_targets(
    attack: Attack, generator: torch.Generator, level: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a timestep and noise for each target; return x_t (N, C, h, w), t (N,) and the noise (N, C, h, w)."""
    alphas = attack.context.denoiser.alphas_cumprod
    x_0 = attack.context.targets.x_0
    t = draw_timesteps(len(alphas), len(x_0), generator, level).to(x_0.device)
    noise = torch.randn(x_0.shape, generator=generator).to(x_0.device)
    return add_noise(x_0, noise, t, alphas), t, noise


def draw_timesteps(total: int, count: int, generator: torch.Generator, level: float | None) -> Tensor:
    """Draw timesteps (count,) of a schedule of `total`; all are at `level` of it, from 0 to 1, if that is given."""
    if level is None:
        return torch.randint(total, (count,), generator=generator)
    return torch.full((count,), int(level * total))


class DenoisingAttack(SlotAttack, GradientAttack):
    """An attack by the denoising loss on images of the concept, as UnlearnDiffAtk (arXiv 2310.11868)."""

    needs: ClassVar[tuple[str, ...]] = ("target images",)

    def draw(self, generator: torch.Generator, level: float | None = None) -> tuple[Tensor, ...]:
        """Draw noised targets: x_t, t, noise."""
        return noise_targets(self, generator, level)

    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return || noise - eps(x_t, t | c') ||^2, (n,)."""
        x_t, t, noise = drawn
        conditioning = self.slots.rows(rows).encode(self.context.encoder, embeddings)
        return denoising_loss(self.context.denoiser.noise_pred(x_t, t, conditioning), noise)


class HardPromptAttack(TokenAttack, GradientAttack):
    """A search for hard tokens by PEZ's projected gradient (arXiv 2302.03668), with AdamW."""

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
