"""What the test attacks share: the scene that they are given, the loop that they run, and what they find.

An attack is a short loop: take a step, say how it went. `Attack` is that loop; `GradientAttack` is the kind whose step
is gradient, optimiser, projection: a new one says what it searches (`start`), its `loss`, and what that stands for
(`found`). All attack N cases in one batch, draw from a `torch.Generator`, and change nothing of the scene.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..config.attacks import AttackConfig
from ..config.concept import ConceptConfig
from ..errors import AdvUnlearnError
from ..models.ddim import scale_batch
from ..models.denoiser import Denoiser
from ..models.text_encoder import encode_prompts, encoder_parts
from .pgd import OnStep

Settings = TypeVar("Settings", bound=AttackConfig)

NEEDS = {
    "pictures": "target pictures that show the concept (latents in the scene's target)",
    "original encoder": "the text encoder before erasing (the scene's `original`)",
    "original denoiser": "the denoiser before erasing (the scene's `original`)",
    "concept": "the concept's settings (the scene's `concept`)",
    "one encoder": "a model with one text encoder, as Stable Diffusion 1.x has",
    "synonyms": "the concept's other names (a file of synonyms, one per line)",
}


@dataclass(frozen=True)
class AttackTargets:
    """N cases to attack: their prompts and, for each, the latents of a picture that shows the concept."""

    ids: Tensor  # (N, L) token ids of the clean prompts
    x_0: Tensor  # (N, C, h, w)
    eos: int

    def rows(self, rows: Tensor) -> AttackTargets:
        """Return some of the cases, by their numbers (n,)."""
        return AttackTargets(self.ids[rows], self.x_0[rows], self.eos)


@dataclass(frozen=True)
class ReferenceModel:
    """The model before erasing, as far as an attack may have it."""

    encoder: Any = None
    denoiser: Denoiser | None = None


@dataclass(frozen=True)
class AttackContext:
    """The attacked model, N cases, and whatever else an attack may need; `Attack.needs` says which of it."""

    denoiser: Denoiser
    encoder: Any
    tokenizer: Any
    prompts: Sequence[str]  # N
    target: AttackTargets
    original: ReferenceModel = ReferenceModel()
    concept: ConceptConfig | None = None
    synonyms: Sequence[str] = ()
    examples: AttackTargets | None = None  # every picture of the concept there is, where more than the cases' own

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.target.ids.device

    def has(self, need: str) -> bool:
        """Return whether one of `NEEDS` is there."""
        return {
            "pictures": bool(len(self.target.x_0)),
            "original encoder": self.original.encoder is not None,
            "original denoiser": self.original.denoiser is not None,
            "concept": self.concept is not None,
            "synonyms": bool(self.synonyms),
            "one encoder": len(encoder_parts(self.encoder)) == 1,
        }[need]

    def encode(self, prompts: Sequence[str], encoder: Any = None) -> Tensor:
        """Return the conditioning (B, L, D) of prompts, under the attacked encoder or another one."""
        return encode_prompts(encoder or self.encoder, self.tokenizer, prompts, self.device)


@dataclass(frozen=True)
class AttackOutput:
    """What N attacks stand for now."""

    conditioning: Tensor  # (N, L, D) under the attacked encoder
    embeddings: Tensor  # (N, k, D) of the tokens searched; k is 0 where none are
    noise: Tensor | None = None  # (N, C, h, w) to start from, where an attack changes that


class Attack(abc.ABC, Generic[Settings]):
    """An attack on N cases at once.

    Args:
        scene: the attacked model, which the caller freezes (`text_encoder.frozen`), and the cases.
        config: settings; those of `config_class`.
        generator: source of every random draw, on the CPU.
        starts: source of the starting points and of the search's own draws; `generator` where it is None.

    Raises AdvUnlearnError when the scene lacks something of `needs`.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    config_class: ClassVar[type[AttackConfig]]
    discrete: ClassVar[bool] = True  # whether it finds text
    restarts: ClassVar[bool] = True  # whether starts on the same case differ

    def __init__(
        self, scene: AttackContext, config: Settings, generator: torch.Generator, starts: torch.Generator | None = None
    ) -> None:
        if not len(scene.target.ids):
            raise AdvUnlearnError(f"{self.name} was given no case to attack; give at least one prompt")
        for need in self.needs:
            if not scene.has(need):
                raise AdvUnlearnError(f"{self.name} lacks {NEEDS[need]}; give that, or choose another attack")
        self.scene, self.config, self.generator, self.starts = scene, config, generator, starts or generator
        self.start()

    @abc.abstractmethod
    def start(self) -> None:
        """Draw the starting points."""

    @abc.abstractmethod
    def step(self) -> Tensor:
        """Take one step; return each case's loss before it (N,), NaN where an attack has none."""

    @abc.abstractmethod
    def found(self) -> AttackOutput:
        """Return what the attack stands for now."""

    def texts(self) -> list[dict[str, Any]]:
        """Return the prompt of each case now, its tokens, and whether it splits into the very tokens found."""
        return []

    def around(self, row: int) -> tuple[str, str] | None:
        """Return the text before and after a case's embeddings; None where they do not stand together."""
        return None

    @property
    def steps(self) -> int:
        """How many steps a run has."""
        return self.config.steps

    def run(self, on_step: OnStep | None = None) -> list[float]:
        """Attack; return the mean loss before each step.

        Args:
            on_step: called after each step with its number and the mean loss; may raise to cancel.
        """
        means: list[float] = []
        for i in range(self.steps):
            losses = self.step()
            means.append(losses.sum().item() / len(losses))
            if on_step is not None:
                on_step(i + 1, means[-1])
        return means


class Search(Protocol):
    """A set that an attack moves through, a point for each case."""

    parameter: Tensor

    def embeddings(self) -> Tensor:
        """Return the differentiable embeddings (N, k, D) of the next gradient step."""
        ...

    def project(self) -> None:
        """Bring the parameter back to its set, in place."""
        ...

    def found(self) -> Tensor:
        """Return the embeddings (N, k, D) that the attack stands for now."""
        ...


class GradientAttack(Attack[Settings]):
    """An attack whose step is: draw, gradient in the embeddings, optimiser, projection. `start` sets the two below."""

    search: Search
    optimizer: torch.optim.Optimizer
    chunk = 64  # cases differentiated together, if their latents are 8 x 8

    def draw(self) -> tuple[Tensor, ...]:
        """Draw what a step's losses need; each tensor has a row for each case."""
        return ()

    @abc.abstractmethod
    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return the losses (n,) of some cases, by their numbers `rows` (n,), at embeddings (n, k, D)."""

    def step(self) -> Tensor:
        """Take one step, in chunks; the gradient is taken afresh."""
        drawn, x = self.draw(), self.search.embeddings()
        gradient, losses = torch.zeros_like(x), torch.zeros(len(x))
        for rows in torch.arange(len(x)).split(scale_batch(self.chunk, self.scene.target.x_0)):
            part = x.detach()[rows].requires_grad_(True)
            loss = self.loss(part, rows, *(d[rows] for d in drawn))
            (gradient[rows],) = torch.autograd.grad(loss.sum(), part)
            losses[rows] = loss.detach().float().cpu()
        self.optimizer.zero_grad()
        x.backward(gradient)
        self.optimizer.step()
        self.search.project()
        return losses
