"""The prompts under attack: where the adversarial part of each goes, what it starts from, and how it is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config.adversary import AdversaryConfig
from ..errors import AdvUnlearnError
from ..models.prompt_tokens import check_room, content_before, end_position, insert, replace_content
from ..models.text_encoder import embedding_table, encode
from .pgd import starting_point


def attack_tokens(tokenizer: Any, prompts: Sequence[str], config: AdversaryConfig) -> int:
    """Return the number k of adversarial tokens: of `add` one for each token of the longest prompt."""
    if config.position != "add":
        return config.tokens
    return max(len(ids) - 2 for ids in tokenizer(list(prompts), truncation=True).input_ids)


def check_attack(tokenizer: Any, prompts: Sequence[str], config: AdversaryConfig) -> None:
    """Raise AdvUnlearnError when a prompt has no room for the attack, or the attack none for its `start_text`."""
    check_room(tokenizer, prompts, config.inserted)
    count = attack_tokens(tokenizer, prompts, config)
    size = len(tokenizer(config.start_text).input_ids) - 2
    if config.start == "text" and size > count:
        more = "raise tokens" if config.position != "add" else "give no more than the concept has"
        raise AdvUnlearnError(
            f"start_text {config.start_text!r} has {size} tokens and the attack {count}; shorten it or {more}"
        )


class AttackedPrompts:
    """P prompts and the adversarial part of each: k embeddings in it, or a perturbation of its conditioning.

    Args:
        encoder: the original text encoder; its table and its deviations are what the attack is measured by.
        tokenizer: its tokenizer.
        prompts: the P clean prompts.
        ids: (P, L) their token ids; these are attacked, and may be shorter than the prompts.
        config: position, space, tokens and start. What does not fit is refused by `check_attack`.
    """

    def __init__(
        self, encoder: nn.Module, tokenizer: Any, prompts: Sequence[str], ids: Tensor, config: AdversaryConfig
    ) -> None:
        eos, device = tokenizer.eos_token_id, ids.device
        self.config, self.ids, self.table = config, ids, embedding_table(encoder).detach()
        self.sigma = self.table.float().std().item()
        count, size = attack_tokens(tokenizer, prompts, config), end_position(ids, eos) - 1
        j = torch.arange(count, device=device)
        self.own = ids.gather(1, 1 + j % size[:, None].clamp(min=1))  # (P, k) the content, repeated where it is short
        text = tokenizer(config.start_text).input_ids[1:-1] or [eos]
        self.text = torch.tensor([text[i % len(text)] for i in range(count)], device=device)
        if config.position == "add":
            self.places = (1 + j).expand(len(ids), count)
            self.real = (j < size[:, None]).to(self.table.dtype)[..., None]  # (P, k, 1) shorter prompts have fewer
        elif config.position == "replace":
            self.ids, self.places = replace_content(ids, count, eos)
        else:
            self.ids, self.places = insert(ids, content_before(size, count, config.position, config.per_k), eos)
        self.shape: tuple[int, ...] = (count, self.table.shape[1])  # of what is found for one prompt
        if config.space == "conditioning":
            with torch.no_grad():
                clean = encode(encoder, ids)
            self.sigma, self.shape = clean.float().std().item(), clean.shape[1:]

    def start(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Return where the attacks on the prompts of these numbers (N,) start: (N, k, D), or (N, L, D) in conditioning.

        What is added starts from nothing where it is to start from the concept's own.
        """
        config, count = self.config, len(numbers)
        if config.position == "add" and (config.start == "concept" or config.space == "conditioning"):
            start = torch.zeros(count, *self.shape, device=numbers.device)
            if config.start == "random":
                start += torch.randn(start.shape, generator=generator).to(start.device) * self.sigma
            return start
        if config.start == "concept":
            return self.table[self.own[numbers]].float()
        if config.start == "text":
            return self.table[self.text].float().expand(count, *self.shape).clone()
        return starting_point(self.table, config, count, generator, self.shape[0])

    def context(self, encoder: nn.Module, numbers: Tensor, found: Tensor) -> Tensor:
        """Encode the prompts of these numbers (B,) with what was found for each (B, k, D) to conditioning (B, L, D)."""
        ids = self.ids[numbers]
        if self.config.space == "conditioning":
            clean = encode(encoder, ids)
            return clean + found.to(clean.dtype)
        if self.config.position == "add":
            return encode(encoder, ids, found * self.real[numbers], self.places[numbers], add=True)
        return encode(encoder, ids, found, self.places[numbers])
