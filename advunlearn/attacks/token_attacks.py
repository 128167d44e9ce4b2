"""What attacks share that search tokens in a prompt's places."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..config.attacks import HardPromptConfig
from ..errors import AdvUnlearnError
from ..losses import denoising_loss
from ..models.denoiser import add_noise
from ..models.text_encoder import embedding_table
from .base import Attack, AttackOutput, GradientAttack, Settings
from .prompt_slots import PromptSlots, content_tokens
from .search_spaces import HardSearch
from .vocabulary import as_text, repaired, search_vocabulary, typed_vocabulary, whole_text

HardSettings = TypeVar("HardSettings", bound=HardPromptConfig)


class SlotAttack(Attack[Settings]):
    """An attack that finds embeddings (N, k, D) for the places of its `slots`, which `start` sets."""

    slots: PromptSlots

    def around(self, row: int) -> tuple[str, str] | None:
        """Return the text before and after a case's places."""
        return self.slots.surrounding_text(row, self.scene.tokenizer)


class TokenAttack(SlotAttack[Settings]):
    """An attack whose embeddings are those of tokens (N, k)."""

    @abc.abstractmethod
    def ids(self) -> Tensor:
        """Return the tokens found now (N, k), on the CPU."""

    def found(self) -> AttackOutput:
        """Return what the tokens say under the attacked encoder."""
        table = embedding_table(self.scene.encoder).detach()
        embeddings = table[self.ids().to(table.device)].float()
        with torch.no_grad():
            return AttackOutput(self.slots.encode(self.scene.encoder, embeddings), embeddings)

    def texts(self) -> list[dict[str, Any]]:
        """Return whole prompts."""
        ids, scene = self.ids(), self.scene
        prompts, length = content_tokens(self.slots.fill(ids).cpu(), scene.target.eos), self.slots.ids.shape[1]
        kept = [row[at < length].tolist() for row, at in zip(ids, self.slots.at.cpu(), strict=True)]
        return [whole_text(scene.tokenizer, p, k) for p, k in zip(prompts, kept, strict=True)]

    def typed(self) -> Tensor:
        """Return the tokens that may stand for one that cannot be typed, on the CPU."""
        return typed_vocabulary(self.scene.tokenizer)

    def typable(self, ids: Tensor) -> Tensor:
        """Return tokens (N, k) so that all of them can be typed: the nearest that can, where one cannot."""
        return repaired(ids.cpu(), embedding_table(self.scene.encoder).detach(), self.typed())

    def vocabulary(self, which: str) -> Tensor:
        """Return the ids that are searched, on the CPU."""
        find = typed_vocabulary if which == "typed" else search_vocabulary
        ids: Tensor = find(self.scene.tokenizer)
        if not len(ids):
            raise AdvUnlearnError(f"{self.name} has no token to search: none of this tokenizer's can be typed")
        return ids


def prefix_texts(attack: TokenAttack[Any]) -> list[dict[str, Any]]:
    """Return the prompts of an attack whose places are in front; the prompts stay as they were written."""
    pairs = zip(attack.ids(), attack.scene.prompts, strict=True)
    return [as_text(attack.scene.tokenizer, ids, prompt) for ids, prompt in pairs]


def noised(attack: Attack[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a timestep and a noise for each case; return x_t (N, C, h, w), t (N,), noise (N, C, h, w)."""
    denoiser, x_0 = attack.scene.denoiser, attack.scene.target.x_0
    t = torch.randint(len(denoiser.alphas_cumprod), (len(x_0),), generator=attack.generator)
    noise = torch.randn(x_0.shape, generator=attack.generator).to(x_0.device)
    return add_noise(x_0, noise, t.to(x_0.device), denoiser.alphas_cumprod), t.to(x_0.device), noise


class DenoisingAttack(SlotAttack[Settings], GradientAttack[Settings]):
    """An attack by the loss of UnlearnDiffAtk: the noise on a picture of the concept is to be predicted."""

    needs: ClassVar[tuple[str, ...]] = ("pictures",)

    def draw(self) -> tuple[Tensor, ...]:
        """Draw noised targets."""
        return noised(self)

    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return || noise - eps(x_t, t | c') ||^2."""
        x_t, t, noise = drawn
        context = self.slots.rows(rows).encode(self.scene.encoder, embeddings)
        return denoising_loss(self.scene.denoiser.noise_pred(x_t, t, context), noise)


class HardPrompt(TokenAttack[HardSettings], GradientAttack[HardSettings]):
    """A gradient attack on hard tokens by PEZ's search, with AdamW."""

    search: HardSearch
    keeps_best = False  # whether losses of different steps can be compared

    @abc.abstractmethod
    def places(self) -> PromptSlots:
        """Return the prompts with their places."""

    def searched_encoder(self) -> Any:
        """Return the encoder whose gradient is followed."""
        return self.scene.encoder

    def start(self) -> None:
        """Start from random tokens."""
        config, self.slots = self.config, self.places()
        table, vocabulary = embedding_table(self.searched_encoder()), self.vocabulary(config.vocabulary)
        self.search = HardSearch(table, vocabulary, len(self.slots), self.slots.at.shape[1], self.starts)
        self.optimizer = torch.optim.AdamW([self.search.parameter], lr=config.lr, weight_decay=config.weight_decay)
        self.best, self.least = self.search.token_ids(), torch.full((len(self.slots),), torch.inf)

    def step(self) -> Tensor:
        """Take one step; remember the best tokens."""
        if not self.keeps_best:
            return super().step()
        ids = self.search.token_ids()
        losses = super().step()
        better = losses < self.least
        self.best[better], self.least[better] = ids[better], losses[better]
        return losses

    def ids(self) -> Tensor:
        """Return the best tokens, or the current ones."""
        return self.typable(self.best if self.keeps_best else self.search.token_ids())
