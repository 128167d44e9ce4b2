"""The adversaries of a run: what they find, and the prompts with it that are trained on.

The first searches adversarial tokens anew, eq. (4). The second, concept inversion (arXiv 2308.01508), keeps words for
the concept that it learns over many iterations, each against the encoder as it is; the oldest starts anew now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..attacks.adversarial_prompts import AttackedPrompts
from ..attacks.pgd import AttackResult, pgd, starting_point
from ..attacks.prompt_slots import Slots, bodies, in_place_of
from ..config.adversary import AdversaryConfig
from ..config.concept import ConceptConfig
from ..losses import attack_loss
from ..models import Denoiser
from ..models.loading import TextToImage
from ..models.text_encoder import tokenize
from .bank import TrajectoryBank
from .distributed import SINGLE, Processes
from .quirks import NONE, Quirks

# By adversary: "prompts" (N, k, D) of the first and "centre", where its first attack started, if it goes on from the
# last one; "words" (G * W, 1, D) of the second.
AdversarialState = dict[str, Tensor]


class Adversaries:
    """Both adversaries of one run.

    Args:
        model: the original model.
        concept: whose P prompts, in G groups of the same concept, are attacked.
        ids: (P, L) what the first attacks of them.
        config: the settings.
        bank: where the samples to attack on come from.
        generator: source of every random draw.
        quirks: what the first does as the published code does.
        processes: share the first's restarts among them; the second works alone.
    """

    def __init__(
        self,
        model: TextToImage,
        concept: ConceptConfig,
        ids: Tensor,
        config: AdversaryConfig,
        bank: TrajectoryBank,
        generator: torch.Generator,
        quirks: Quirks = NONE,
        processes: Processes = SINGLE,
    ) -> None:
        self.config, self.bank, self.generator, self.quirks = config, bank, generator, quirks
        self.processes = processes
        self.prompts = AttackedPrompts(model.text_encoder, model.tokenizer, concept.prompts, ids, config)
        self.groups = len(concept.groups)
        self.group = torch.arange(len(ids), device=ids.device) // (len(ids) // self.groups)  # (P,) all are as large
        if config.inversion_tokens:
            self.word_config, self.sigma = word_config(config), self.prompts.table.float().std().item()
            self.slots = word_slots(model.tokenizer, concept, ids.device)

    def find(
        self,
        encoder: torch.nn.Module,
        denoiser: Denoiser,
        last: AdversarialState | None,
        number: int,
        on_step: Callable[[int, float], None],
    ) -> tuple[AdversarialState, AttackResult]:
        """Attack an encoder; return what both have now, and how the first one fared.

        Args:
            encoder, denoiser: the attacked model.
            last: what was found last.
            number: how many attacks there were before.
            on_step: called after each step with its number and the mean loss; may raise.
        """
        config, last, share = self.config, last or {}, self.processes.share
        kept = self.bank.draw(config.restarts)
        start = last.get("prompts")
        if start is None or config.start != "latest":
            start = self.prompts.start(kept.prompt, self.generator)
        kept = share(kept)

        def objective(embeddings: Tensor) -> Tensor:
            draw = kept if config.resample == "iteration" else share(self.bank.draw(config.restarts))
            context = self.prompts.context(encoder, draw.prompt, embeddings)
            return attack_loss(denoiser.noise_pred(draw.x_t, draw.t, context), draw.cond)

        # An attack that goes on from the last one stays in the ball of the first: else radius would bound nothing.
        centre = last.get("centre", start)
        own = pgd(objective, share(start), config, self.prompts.sigma, on_step, self.quirks, share(centre))
        result = self._all(own)
        found = {"prompts": result.embeddings}
        if config.start == "latest":
            found["centre"] = centre
        if config.inversion_tokens:
            found["words"] = self._learned(encoder, denoiser, last.get("words"), number, on_step)
        return found, result

    def _all(self, result: AttackResult) -> AttackResult:
        """Return what all processes found, of what this one found for its share of the restarts."""
        losses = [self.processes.part(loss, self.config.restarts) for loss in result.losses]
        whole = self.processes.whole(result.embeddings, self.config.restarts)
        return AttackResult(whole, self.processes.totals(losses))

    def _learned(
        self,
        encoder: torch.nn.Module,
        denoiser: Denoiser,
        words: Tensor | None,
        number: int,
        on_step: Callable[[int, float], None],
    ) -> Tensor:
        """Return the words (G * W, 1, D) after some more steps, those of the concepts that a draw is of."""
        config, each = self.word_config, self.config.inversion_tokens
        if words is None:
            words = starting_point(self.prompts.table, config, self.groups * each, self.generator)
        elif self.config.inversion_restart_interval and number % self.config.inversion_restart_interval == 0:
            oldest = torch.arange(self.groups) * each + number // self.config.inversion_restart_interval % each
            words = words.clone()
            words[oldest] = starting_point(self.prompts.table, config, self.groups, self.generator)
        kept = self.bank.draw(each)
        rows = self._rows(kept.prompt, torch.arange(each))
        # A word is learned for one concept: other draws are of other concepts where there are several.
        again = config.resample == "step" and self.groups == 1

        def objective(embeddings: Tensor) -> Tensor:
            draw = self.bank.draw(each) if again else kept
            context = self.slots.rows(draw.prompt).conditioning(encoder, embeddings)
            return attack_loss(denoiser.noise_pred(draw.x_t, draw.t, context), draw.cond)

        def later(step: int, loss: float) -> None:
            on_step(self.config.steps + step, loss)

        learned = words.clone()
        learned[rows] = pgd(objective, words[rows], config, self.sigma, later).embeddings
        return learned

    def _rows(self, prompts: Tensor, words: Tensor) -> Tensor:
        """Return the places in (G * W, 1, D) of words by their numbers (B,), each of its prompt's concept."""
        return self.group[prompts] * self.config.inversion_tokens + words.to(prompts.device)

    def contexts(
        self, encoder: torch.nn.Module, numbers: Tensor, found: AdversarialState, turn: int, start: int = 0
    ) -> list[Tensor]:
        """Encode prompts by their numbers (B,) with what was found in them: the last part of them has words.

        Args:
            encoder: the attacked encoder.
            numbers: (B,) of the prompts.
            found: by the adversaries.
            turn: how many batches of B there were before: the words take turns, and so do parts of a sample.
            start: how many attacked prompts of the same batch other processes encode before these.
        """
        words = found.get("words")
        first, last = (int(self.config.inversion_share * len(numbers) * n) for n in (turn, turn + 1))
        by_word = 0 if words is None else last - first
        plain, worded = numbers[: len(numbers) - by_word], numbers[len(numbers) - by_word :]
        out = []
        if len(plain):
            rows = torch.arange(start, start + len(plain), device=numbers.device) % len(found["prompts"])
            out.append(self.prompts.context(encoder, plain, found["prompts"][rows]))
        if words is not None and by_word:
            rows = self._rows(worded, torch.arange(first, last) % self.config.inversion_tokens)
            out.append(self.slots.rows(worded).conditioning(encoder, words[rows]))
        return out


def word_slots(tokenizer: Any, concept: ConceptConfig, device: torch.device) -> Slots:
    """Return a concept's prompts with a place where its name stands; of joined ones, in the whole prompt's place."""
    ids = tokenize(tokenizer, concept.prompts).to(device)
    rows = bodies(ids, tokenizer.eos_token_id)
    names = [tokenizer(name).input_ids[1:-1] for name in concept.names]
    return in_place_of(rows, rows if concept.schedule == "joined" else names, [], 1, tokenizer, device)


def word_config(config: AdversaryConfig) -> AdversaryConfig:
    """Return the second adversary's settings: one embedding in the concept's place, by Adam, in no ball."""
    return replace(
        config,
        steps=config.inversion_steps,
        update="adam",
        tokens=1,
        position="replace",
        space="embedding",
        start="token",
        start_text="",
        radius=0.0,
    )
