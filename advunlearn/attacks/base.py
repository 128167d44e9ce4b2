"""Base classes of the test attacks, the context they get, and the output they return.

An attack is a loop over `step`; see `gradient_attack` for those that step by gradient, optimiser and projection. All
attacks work on N cases in one batch, draw from a `torch.Generator`, and leave the model unchanged.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config.attacks import AttackConfig, Vocabulary
from ..config.concept import ConceptConfig
from ..errors import AdvUnlearnError
from ..models.denoiser import Denoiser
from ..models.text_encoder import embedding_table, encode_prompts, encoder_parts
from ..models.tokenizer import Tokenizer, tokenize
from .pgd import OnStep
from .prompt_slots import PromptSlots, content_tokens
from .vocabulary import PromptRow, describe_prompt, replace_untypable, search_vocabulary, typed_vocabulary

NEEDS = {
    "target images": "target images that show the concept (latents in the context's targets)",
    "original encoder": "the text encoder before erasing (the context's reference)",
    "original denoiser": "the denoiser before erasing (the context's reference)",
    "concept": "the concept's settings (the context's concept)",
    "one encoder": "a model with one text encoder, as Stable Diffusion 1.x has",
    "synonyms": "synonyms of the concept (a file with one synonym per line)",
}


@dataclass(frozen=True)
class AttackTargets:
    """N prompts and, for each, the latents of an image that shows the concept."""

    ids: Tensor  # (N, L) token ids of the clean prompts
    x_0: Tensor  # (N, C, h, w)
    eos: int

    def rows(self, rows: Tensor) -> AttackTargets:
        """Return some of the targets, by their indices (n,)."""
        return AttackTargets(self.ids[rows], self.x_0[rows], self.eos)


@dataclass(frozen=True)
class ReferenceModel:
    """The model before erasing, or the parts of it that an attack may use."""

    encoder: nn.Module | None = None
    denoiser: Denoiser | None = None


@dataclass(frozen=True)
class AttackContext:
    """The attacked model, N cases, and everything else that an attack may need (see `Attack.needs`)."""

    denoiser: Denoiser
    encoder: nn.Module
    tokenizer: Tokenizer
    prompts: Sequence[str]  # N
    targets: AttackTargets  # N
    reference: ReferenceModel = ReferenceModel()
    concept: ConceptConfig | None = None
    synonyms: Sequence[str] = ()
    concept_images: AttackTargets | None = None  # all available images of the concept; `targets` if None

    @classmethod
    def for_prompt(
        cls,
        denoiser: Denoiser,
        encoder: nn.Module,
        tokenizer: Tokenizer,
        prompt: str,
        x_0: Tensor,
        **more: Any,
    ) -> AttackContext:
        """Return the context of one prompt and the latents x_0 (1, C, h, w) of an image that shows the concept."""
        ids = tokenize(tokenizer, [prompt]).to(denoiser.device)
        return cls(denoiser, encoder, tokenizer, [prompt], AttackTargets(ids, x_0, tokenizer.eos_token_id), **more)

    def repeat(self, count: int) -> AttackContext:
        """Return the context of one case `count` times over, for as many starts."""
        rows = torch.zeros(count, dtype=torch.long, device=self.device)
        return replace(self, prompts=[self.prompts[0]] * count, targets=self.targets.rows(rows))

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.targets.ids.device

    def has(self, need: str) -> bool:
        """Return whether the context has one of `NEEDS`."""
        return {
            "target images": bool(len(self.targets.x_0)),
            "original encoder": self.reference.encoder is not None,
            "original denoiser": self.reference.denoiser is not None,
            "concept": self.concept is not None,
            "one encoder": len(encoder_parts(self.encoder)) == 1,
            "synonyms": bool(self.synonyms),
        }[need]

    def encode(self, prompts: Sequence[str], encoder: nn.Module | None = None) -> Tensor:
        """Return the conditioning (B, L, D) of prompts; by the attacked encoder, unless another one is given."""
        return encode_prompts(encoder or self.encoder, self.tokenizer, prompts, self.device)


@dataclass(frozen=True)
class AttackOutput:
    """The current result of an attack on N cases."""

    conditioning: Tensor  # (N, L, D) by the attacked encoder
    embeddings: Tensor  # (N, k, D) of the searched tokens; k is 0 if an attack searches none
    noise: Tensor | None = None  # (N, C, h, w) initial noise, if the attack changes it


class Attack(abc.ABC):
    """An attack on N cases at once.

    Args:
        context: the attacked model, frozen by the caller (`text_encoder.frozen`), and the cases.
        config: settings, an object of `config_class`.
        generator: source of all random draws, on the CPU.
        starts: source of the starting points and of the search space's own draws (default: `generator`).

    Raises AdvUnlearnError when there is no case, or the context lacks something of `needs`.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    config_class: ClassVar[type[AttackConfig]]
    discrete: ClassVar[bool] = True  # whether the result is text
    restarts: ClassVar[bool] = True  # whether several starts on the same case differ
    config: AttackConfig

    def __init__(
        self,
        context: AttackContext,
        config: AttackConfig,
        generator: torch.Generator,
        starts: torch.Generator | None = None,
    ) -> None:
        if not len(context.targets.ids):
            raise AdvUnlearnError(f"{self.name} was given no case to attack; give at least one prompt")
        for need in self.needs:
            if not context.has(need):
                raise AdvUnlearnError(f"{self.name} lacks {NEEDS[need]}; give that, or choose another attack")
        self.context = context
        self.config = config
        self.generator = generator
        self.starts = starts or generator
        self.start()

    @abc.abstractmethod
    def start(self) -> None:
        """Draw the starting points."""

    @abc.abstractmethod
    def step(self) -> Tensor:
        """Take one step; return each case's loss before it (N,), NaN for an attack without a loss."""

    @abc.abstractmethod
    def result(self) -> AttackOutput:
        """Return the current result."""

    def objective(self) -> Tensor | None:
        """Return the losses of the current result (N,), comparable between steps; None for an attack without a loss.

        Attacks that search one point for all cases return one loss.
        """
        return None

    def prompts(self) -> list[PromptRow]:
        """Return the current adversarial prompt of each case, see `describe_prompt`; [] if the result is no text."""
        return []

    def surrounding_text(self, row: int) -> tuple[str, str] | None:
        """Return the text before and after a case's embeddings; None if they are not contiguous."""
        return None

    @property
    def steps(self) -> int:
        """Number of steps of a run."""
        return self.config.steps

    def run(self, on_step: OnStep | None = None) -> list[float]:
        """Run the attack; return the mean loss before each step.

        Args:
            on_step: called after each step with its number, from 1, and the mean loss; may raise to cancel.
        """
        means: list[float] = []
        for i in range(self.steps):
            losses = self.step()
            means.append(losses.sum().item() / len(losses))
            if on_step is not None:
                on_step(i + 1, means[-1])
        return means


class SlotAttack(Attack):
    """An attack that searches the embeddings (N, k, D) of prompt slots; `start` sets `slots`."""

    slots: PromptSlots

    def surrounding_text(self, row: int) -> tuple[str, str] | None:
        """Return the text before and after a case's slots."""
        return self.slots.surrounding_text(row, self.context.tokenizer)


class TokenAttack(SlotAttack):
    """An attack whose embeddings are those of tokens (N, k)."""

    @abc.abstractmethod
    def token_ids(self) -> Tensor:
        """Return the current tokens (N, k), on the CPU."""

    def result(self) -> AttackOutput:
        """Return the conditioning of the prompts with the current tokens."""
        embeddings = self.embed_tokens(self.token_ids())
        with torch.no_grad():
            return AttackOutput(self.slots.encode(self.context.encoder, embeddings), embeddings)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return the attacked encoder's embeddings (N, k, D) of tokens (N, k)."""
        table = embedding_table(self.context.encoder).detach()
        return table[ids.to(table.device)].float()

    def prompts(self) -> list[PromptRow]:
        """Return the prompts, decoded from all of their tokens."""
        ids = self.token_ids()
        length = self.slots.ids.shape[1]
        contents = content_tokens(self.slots.fill(ids).cpu(), self.context.tokenizer)
        searched = [row[at < length].tolist() for row, at in zip(ids, self.slots.at.cpu(), strict=True)]
        return [describe_prompt(self.context.tokenizer, c, s) for c, s in zip(contents, searched, strict=True)]

    def typable_tokens(self) -> Tensor:
        """Return the tokens that may replace an untypable one (V',), on the CPU."""
        return typed_vocabulary(self.context.tokenizer)

    def make_typable(self, ids: Tensor) -> Tensor:
        """Return tokens (N, k) with each untypable one replaced by its nearest typable one."""
        return replace_untypable(ids.cpu(), embedding_table(self.context.encoder).detach(), self.typable_tokens())

    def find_vocabulary(self, kind: Vocabulary) -> Tensor:
        """Return the ids of the searched tokens (V,), on the CPU. Raises AdvUnlearnError when there are none."""
        find = typed_vocabulary if kind == "typed" else search_vocabulary
        ids: Tensor = find(self.context.tokenizer)
        if not len(ids):
            raise AdvUnlearnError(f"{self.name} has no token to search: none of this tokenizer's can be typed")
        return ids
