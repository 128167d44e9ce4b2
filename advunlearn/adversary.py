"""The adversaries of a run: what they find, and the prompts with it that are trained on.

The first searches adversarial tokens anew, eq. (4). The second, concept inversion (arXiv 2308.01508), keeps words for
the concept that it learns over many iterations, each against the encoder as it is; the oldest starts anew now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .attacks.attacked import AttackedPrompts
from .attacks.pgd import AttackResult, pgd, starting_point
from .config import AttackConfig
from .denoisers import Denoiser
from .losses import attack_loss
from .models import TextToImage
from .quirks import NONE, Quirks
from .trajectories import TrajectoryBank

Found = dict[str, Tensor]  # by adversary: (N, k, D) of the first, (P * words, 1, D) of the second, or fewer


class Adversaries:
    """Both adversaries of one run.

    Args:
        model: the original model.
        prompts: the P clean prompts; ids: (P, L) what is attacked of them.
        config: the settings.
        bank: where the samples to attack on come from.
        generator: source of every random draw.
        quirks: what the first does as the published code does.
    """

    def __init__(
        self,
        model: TextToImage,
        prompts: Sequence[str],
        ids: Tensor,
        config: AttackConfig,
        bank: TrajectoryBank,
        generator: torch.Generator,
        quirks: Quirks = NONE,
    ) -> None:
        self.config, self.bank, self.generator, self.quirks = config, bank, generator, quirks
        self.prompts = AttackedPrompts(model.text_encoder, model.tokenizer, prompts, ids, config)
        self.words = AttackedPrompts(model.text_encoder, model.tokenizer, prompts, ids, word_config(config))
        self.count = len(prompts)

    def find(
        self, encoder: torch.nn.Module, denoiser: Denoiser, last: Found | None, number: int,
        on_step: Callable[[int, float], None],
    ) -> tuple[Found, AttackResult]:  # fmt: skip
        """Attack an encoder; return what both have now, and how the first one fared.

        Args:
            encoder, denoiser: the attacked model.
            last: what was found last.
            number: how many attacks there were before.
            on_step: called after each step with its number and the mean loss; may raise.
        """
        config, last = self.config, last or {}
        kept = self.bank.draw(config.restarts)
        start = last.get("prompts")
        if start is None or config.start != "latest":
            start = self.prompts.start(kept.prompt, self.generator)

        def objective(embeddings: Tensor) -> Tensor:
            draw = kept if config.redraw == "iteration" else self.bank.draw(config.restarts)
            context = self.prompts.context(encoder, draw.prompt, embeddings)
            return attack_loss(denoiser.noise_pred(draw.x_t, draw.t, context), draw.cond)

        result = pgd(objective, start, config, self.prompts.sigma, on_step, self.quirks)
        found = {"prompts": result.embeddings}
        if config.words:
            found["words"] = self._learned(encoder, denoiser, last.get("words"), number, on_step)
        return found, result

    def _learned(
        self, encoder: torch.nn.Module, denoiser: Denoiser, words: Tensor | None, number: int,
        on_step: Callable[[int, float], None],
    ) -> Tensor:  # fmt: skip
        """Return the words (P * W, 1, D) after some more steps, those of the prompts that a draw is of."""
        config, each = self.words.config, self.config.words
        if words is None:
            words = starting_point(self.words.table, config, self.count * each, self.generator)
        elif self.config.word_renewal and number % self.config.word_renewal == 0:
            oldest = torch.arange(self.count) * each + number // self.config.word_renewal % each
            words = words.clone()
            words[oldest] = starting_point(self.words.table, config, self.count, self.generator)
        kept = self.bank.draw(each)
        rows = kept.prompt * each + torch.arange(each, device=kept.prompt.device)
        # A word is learned for one prompt: other draws are of other prompts where there are several.
        again = config.redraw == "step" and self.count == 1

        def objective(embeddings: Tensor) -> Tensor:
            draw = self.bank.draw(each) if again else kept
            context = self.words.context(encoder, draw.prompt, embeddings)
            return attack_loss(denoiser.noise_pred(draw.x_t, draw.t, context), draw.cond)

        def later(step: int, loss: float) -> None:
            on_step(self.config.steps + step, loss)

        learned = words.clone()
        learned[rows] = pgd(objective, words[rows], config, self.words.sigma, later).embeddings
        return learned

    def contexts(self, encoder: torch.nn.Module, numbers: Tensor, found: Found) -> list[Tensor]:
        """Encode prompts by their numbers (B,) with what was found in them: the last part of them has words."""
        words, each = found.get("words"), self.config.words
        by_word = round(self.config.word_share * len(numbers)) if words is not None else 0
        plain, worded = numbers[: len(numbers) - by_word], numbers[len(numbers) - by_word :]
        out = []
        if len(plain):
            rows = torch.arange(len(plain), device=numbers.device) % len(found["prompts"])
            out.append(self.prompts.context(encoder, plain, found["prompts"][rows]))
        if words is not None and by_word:
            rows = worded * each + torch.arange(by_word, device=numbers.device) % each
            out.append(self.words.context(encoder, worded, words[rows]))
        return out


def word_config(config: AttackConfig) -> AttackConfig:
    """Return the second adversary's settings: one embedding in the concept's place, by Adam, in no ball."""
    return replace(
        config, steps=config.word_steps, update="adam", tokens=1, position="replace", space="embedding", start="token",
        start_text="", radius=0.0,
    )  # fmt: skip
