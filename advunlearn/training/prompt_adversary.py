"""The adversary of the paper: adversarial embeddings in the prompt, searched from a new start in every attack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..attacks.pgd import Minimiser, OnStep, pgd, starting_point
from ..attacks.prompt_slots import position_slots
from ..config.adversary import AdversaryConfig
from ..models.denoiser import Denoiser
from ..models.prompt_tokens import end_position
from ..models.text_encoder import embedding_table, encode
from ..models.tokenizer import Tokenizer
from .adversary import AdversarialState, Draw
from .distributed import SINGLE, Processes
from .micro_batches import row_losses, samples_loss


class PromptAdversary:
    """Adversarial embeddings in the prompt, or in its conditioning, found by several parallel attacks.

    Its state has "embeddings" (N, k, D), one per attack, and, with start `latest`, "centre" (N, k, D), the start of the
    first attack.

    Args:
        encoder: the original text encoder; its embedding table and its deviation are the unit of the attack.
        tokenizer: its tokenizer.
        prompts: the P clean prompts.
        ids: (P, L) token ids to attack.
        config: the settings; what does not fit the prompts is refused by `validation.check_attack`.
        generator: source of the starting points.
        minimise: the search.
        processes: share the attacks among them.
        micro_batch: attacks in one pass of the denoiser; 0 for all.
        sizes: (P,) lengths of the prompts by which the slots' places are counted; None for their numbers of tokens.
    """

    name = "prompt"
    share = None

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        ids: Tensor,
        config: AdversaryConfig,
        generator: torch.Generator,
        minimise: Minimiser = pgd,
        processes: Processes = SINGLE,
        micro_batch: int = 0,
        sizes: Tensor | None = None,
    ) -> None:
        self.config = config
        self.num_steps = config.steps
        self.generator = generator
        self.minimise = minimise
        self.processes = processes
        self.micro_batch = micro_batch
        self.ids = ids
        self.table = embedding_table(encoder).detach()  # (V, D)
        count = num_adversarial_tokens(tokenizer, prompts, config)
        self.slots = position_slots(ids, count, config.position, tokenizer.eos_token_id, config.per_k, sizes)
        self.concept_tokens = repeated_content(ids, count, tokenizer.eos_token_id)  # (P, k)
        text = tokenizer(config.start_text).input_ids[1:-1] or [tokenizer.eos_token_id]
        self.start_tokens = torch.tensor([text[i % len(text)] for i in range(count)], device=ids.device)  # (k,)
        self.shape: tuple[int, ...] = (count, self.table.shape[1])  # of one attack's result
        self.sigma = self.table.float().std().item()
        if config.space == "conditioning":
            with torch.no_grad():
                clean = encode(encoder, ids)  # (P, L, D)
            self.sigma = clean.float().std().item()
            self.shape = clean.shape[1:]

    def take(self, available: int, turn: int) -> range:
        """Return all samples."""
        return range(available)

    def find(
        self, encoder: nn.Module, denoiser: Denoiser, draw: Draw, state: AdversarialState, number: int, on_step: OnStep
    ) -> tuple[AdversarialState, list[float]]:
        """Minimise eq. (4) from several starting points at once."""
        config = self.config
        fixed = draw(config.restarts) if config.resample == "iteration" else None
        prompts = draw.draw_prompts(config.restarts) if fixed is None else fixed.prompt
        start = state.get("embeddings")
        if start is None or config.start != "latest":
            start = self.starting_embeddings(prompts)
        # An attack that continues the last one stays in the ball of the first: otherwise radius would bound nothing.
        centre = state.get("centre", start)
        shard = self.processes.shard

        def objective(embeddings: Tensor) -> Tensor:
            samples = shard(draw(config.restarts) if fixed is None else fixed)
            conditioning = self.encode_embeddings(encoder, samples.prompt, embeddings)
            return row_losses(samples_loss(denoiser, samples), conditioning, self.micro_batch)

        result = self.minimise(objective, shard(start), config, self.sigma, on_step, shard(centre))
        found = {"embeddings": self.processes.all_gather_rows(result.embeddings, config.restarts)}
        if config.start == "latest":
            found["centre"] = centre
        means = [self.processes.scale_mean(loss, config.restarts) for loss in result.losses]
        return found, self.processes.sum_values(means)

    def starting_embeddings(self, prompts: Tensor) -> Tensor:
        """Return the starting points of attacks on prompts, by their indices (N,): (N, k, D), or (N, L, D).

        In position add, start concept means an addition of zero.
        """
        config, count = self.config, len(prompts)
        if config.position == "add" and (config.start == "concept" or config.space == "conditioning"):
            start = torch.zeros(count, *self.shape, device=prompts.device)
            if config.start == "random":
                start += torch.randn(start.shape, generator=self.generator).to(start.device) * self.sigma
            return start
        if config.start == "concept":
            return self.table[self.concept_tokens[prompts]].float()
        if config.start == "text":
            return self.table[self.start_tokens].float().expand(count, *self.shape).clone()
        return starting_point(self.table, config, count, self.generator, self.shape[0])

    def encode(self, encoder: nn.Module, prompts: Tensor, samples: Tensor, state: AdversarialState) -> Tensor:
        """Encode prompts with the results of the parallel attacks in turn."""
        embeddings = state["embeddings"]
        return self.encode_embeddings(encoder, prompts, embeddings[samples % len(embeddings)])

    def encode_embeddings(self, encoder: nn.Module, prompts: Tensor, embeddings: Tensor) -> Tensor:
        """Return the conditioning (B, L, D) of prompts, by their indices (B,), with one result (B, k, D) for each."""
        if self.config.space == "conditioning":
            clean = encode(encoder, self.ids[prompts])
            return clean + embeddings.to(clean.dtype)
        return self.slots.rows(prompts).encode(encoder, embeddings)


def num_adversarial_tokens(tokenizer: Tokenizer, prompts: Sequence[str], config: AdversaryConfig) -> int:
    """Return the number k of adversarial tokens; in position add, one for each token of the longest prompt."""
    if config.position != "add":
        return config.tokens
    return max(len(ids) - 2 for ids in tokenizer(list(prompts), truncation=True).input_ids)


def repeated_content(ids: Tensor, count: int, eos: int) -> Tensor:
    """Return the first `count` content tokens of prompts (P, L), repeated where there are fewer: (P, count)."""
    size = end_position(ids, eos) - 1
    j = torch.arange(count, device=ids.device)
    return ids.gather(1, 1 + j % size[:, None].clamp(min=1))
