"""The adversaries' protocol, eq. (4), and the division of a batch of concept samples among a list of them.

The clean prompt is the adversary that searches nothing. The others are `prompt_adversary.PromptAdversary` and
`inversion_adversary.InversionAdversary`. A new adversary is one class with the methods of `Adversary` and an entry in
`trainer.make_adversaries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ..attacks.pgd import OnStep
from ..models.denoiser import Denoiser
from ..models.text_encoder import encode
from .bank import BankSamples, SampleSource

AdversarialState = dict[str, Tensor]  # what an adversary found; it is saved with the run


@dataclass(frozen=True)
class Draw:
    """Draws samples of the concept for an attack.

    Args:
        source: where they come from.
        prompts: the prompts in turn; None for all of them.
        one_timestep: whether the samples of a draw share their timestep, as in the published code.
    """

    source: SampleSource
    prompts: range | None = None
    one_timestep: bool = False

    def __call__(self, count: int) -> BankSamples:
        """Return `count` samples."""
        return self.source.draw(count, self.prompts, self.source.draw_timestep() if self.one_timestep else None)

    def draw_prompts(self, count: int) -> Tensor:
        """Return the prompts of `count` samples, by their indices (count,)."""
        return self.source.draw_prompts(count, self.prompts)


class Adversary(Protocol):
    """One source of concept prompts that a run trains on."""

    name: str
    num_steps: int  # steps of one attack

    @property
    def share(self) -> float | None:
        """Fraction of the samples that the adversaries before it in the list leave; None for all the rest."""
        ...

    def take(self, available: int, turn: int) -> range:
        """Return which of its samples, counted over all turns, an adversary serves in one turn."""
        ...

    def find(
        self, encoder: nn.Module, denoiser: Denoiser, draw: Draw, state: AdversarialState, number: int, on_step: OnStep
    ) -> tuple[AdversarialState, list[float]]:
        """Attack an encoder.

        Args:
            encoder: the text encoder under attack.
            denoiser: predicts the noise.
            draw: draws samples of the concept.
            state: what the last attack returned; empty before the first.
            number: number of attacks before this one.
            on_step: called after each step with its number, from 1, and the mean loss; may raise to cancel.

        Returns the new state and the mean loss before each step.
        """
        ...

    def encode(self, encoder: nn.Module, prompts: Tensor, samples: Tensor, state: AdversarialState) -> Tensor:
        """Return the conditioning (B, L, D) of prompts, by their indices (B,), for samples by their numbers (B,)."""
        ...


def divide(adversaries: Sequence[Adversary], batch: int, turn: int) -> list[range]:
    """Divide a batch: return, for each adversary, the numbers of its samples; in the batch they follow the list.

    Each adversary takes its share of what those before it leave; the one without a share takes the rest.
    """
    rest = batch
    taken: dict[str, range] = {}
    for adversary in adversaries:
        if adversary.share is not None:
            taken[adversary.name] = adversary.take(rest, turn)
            rest -= len(taken[adversary.name])
    return [taken.get(adversary.name, range(rest)) for adversary in adversaries]


class CleanPrompt:
    """The concept's own prompts: an adversary without a search.

    Args:
        ids: (P, L) token ids of the prompts.
        share: fraction of the samples; None for all of them.
    """

    name = "clean"
    num_steps = 0

    def __init__(self, ids: Tensor, share: float | None = None) -> None:
        self.ids = ids
        self.share = share

    def take(self, available: int, turn: int) -> range:
        """Return as many samples in every turn."""
        return range(round((self.share or 0.0) * available))

    def find(
        self, encoder: nn.Module, denoiser: Denoiser, draw: Draw, state: AdversarialState, number: int, on_step: OnStep
    ) -> tuple[AdversarialState, list[float]]:
        """Find nothing."""
        return {}, []

    def encode(self, encoder: nn.Module, prompts: Tensor, samples: Tensor, state: AdversarialState) -> Tensor:
        """Encode the prompts as they are."""
        return encode(encoder, self.ids[prompts])
