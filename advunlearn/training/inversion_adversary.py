"""The second adversary, concept inversion (arXiv 2308.01508): learned tokens for the concept, improved over attacks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..attacks.pgd import OnStep, pgd, starting_point
from ..attacks.prompt_slots import PromptSlots, content_tokens, replacement_slots
from ..config.adversary import AdversaryConfig
from ..config.concept import ConceptConfig
from ..models.denoiser import Denoiser
from ..models.text_encoder import embedding_table
from ..models.tokenizer import Tokenizer, tokenize
from .adversary import AdversarialState, Draw
from .micro_batches import row_losses, samples_loss


class InversionAdversary:
    """Concept inversion: W learned tokens for each of G concepts, one in place of the concept's name. Unbounded.

    Its state has "tokens" (G * W, 1, D). They are improved in every attack, and now and then the oldest restarts from a
    random row of the embedding table, so that tokens of every age are trained on.

    Args:
        encoder: the original text encoder; its embedding table is where tokens start.
        tokenizer: its tokenizer.
        concept: whose P prompts, in G groups, are attacked.
        config: the settings of the adversaries.
        generator: source of the starting points.
        micro_batch: tokens in one pass of the denoiser; 0 for all.
    """

    name = "inversion"

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Tokenizer,
        concept: ConceptConfig,
        config: AdversaryConfig,
        generator: torch.Generator,
        micro_batch: int = 0,
    ) -> None:
        self.micro_batch = micro_batch
        self.share = config.inversion_share
        self.num_steps = config.inversion_steps
        self.config = inversion_config(config)
        self.per_concept = config.inversion_tokens  # W
        self.restart_interval = config.inversion_restart_interval
        self.generator = generator
        self.table = embedding_table(encoder).detach()
        self.sigma = self.table.float().std().item()
        self.slots = name_slots(tokenizer, concept, self.table.device)
        self.groups = len(concept.groups)
        prompts = torch.arange(len(self.slots), device=self.table.device)
        self.group = prompts // (len(prompts) // self.groups)  # (P,) groups have as many prompts each

    def take(self, available: int, turn: int) -> range:
        """Return the share of the samples; what is left of a sample counts for later turns."""
        return range(int(self.share * available * turn), int(self.share * available * (turn + 1)))

    def find(
        self, encoder: nn.Module, denoiser: Denoiser, draw: Draw, state: AdversarialState, number: int, on_step: OnStep
    ) -> tuple[AdversarialState, list[float]]:
        """Improve the tokens of the concepts that a draw has."""
        tokens = self._restarted(state.get("tokens"), number)
        first_draw = draw(self.per_concept)
        rows = self._rows(first_draw.prompt, torch.arange(self.per_concept))
        # A token is learned for one concept; with several of them, another draw may be of another concept.
        resample = self.config.resample == "step" and self.groups == 1

        def objective(embeddings: Tensor) -> Tensor:
            samples = draw(self.per_concept) if resample else first_draw
            conditioning = self.slots.rows(samples.prompt).encode(encoder, embeddings)
            return row_losses(samples_loss(denoiser, samples), conditioning, self.micro_batch)

        result = pgd(objective, tokens[rows], self.config, self.sigma, on_step)
        improved = tokens.clone()
        improved[rows] = result.embeddings
        return {"tokens": improved}, result.losses

    def _restarted(self, tokens: Tensor | None, number: int) -> Tensor:
        """Return all tokens, new ones before the first attack; at each restart the oldest of a concept is new."""
        if tokens is None:
            return starting_point(self.table, self.config, self.groups * self.per_concept, self.generator)
        if not self.restart_interval or number % self.restart_interval:
            return tokens
        oldest = torch.arange(self.groups) * self.per_concept + number // self.restart_interval % self.per_concept
        tokens = tokens.clone()
        tokens[oldest] = starting_point(self.table, self.config, self.groups, self.generator)
        return tokens

    def _rows(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """Return the rows in (G * W, 1, D) of tokens by their numbers (B,), each of its prompt's concept."""
        return self.group[prompts] * self.per_concept + tokens.to(prompts.device)

    def encode(self, encoder: nn.Module, prompts: Tensor, samples: Tensor, state: AdversarialState) -> Tensor:
        """Encode prompts with their concept's tokens in turn."""
        rows = self._rows(prompts, samples % self.per_concept)
        return self.slots.rows(prompts).encode(encoder, state["tokens"][rows])


def name_slots(tokenizer: Tokenizer, concept: ConceptConfig, device: torch.device) -> PromptSlots:
    """Return a concept's prompts with a slot in place of its name; of joined concepts, in place of the whole prompt."""
    ids = tokenize(tokenizer, concept.prompts).to(device)
    prompts = content_tokens(ids, tokenizer)
    names = [tokenizer(name).input_ids[1:-1] for name in concept.names]
    return replacement_slots(prompts, prompts if concept.schedule == "joined" else names, [], 1, tokenizer, device)


def inversion_config(config: AdversaryConfig) -> AdversaryConfig:
    """Return the settings of concept inversion: one embedding in place of the name, by Adam, without a ball."""
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
