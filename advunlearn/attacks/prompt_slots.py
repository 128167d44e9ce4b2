"""Prompts with places for the tokens that an attack searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from ..models.prompt_tokens import end_position, find_span, insert, replace_content
from ..models.text_encoder import embed, encode


@dataclass(frozen=True)
class Slots:
    """N prompts with k places each."""

    ids: Tensor  # (N, L) token ids; 0 in the places
    at: Tensor  # (N, k) where the places are; L for one that the prompt has no room for

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: Tensor) -> Slots:
        """Return some of the prompts, by their numbers (n,)."""
        return Slots(self.ids[rows], self.at[rows])

    def around(self, row: int, tokenizer: Any) -> tuple[str, str] | None:
        """Return the text of a prompt before and after its places; None where they do not stand together."""
        places = self.at[row][self.at[row] < self.ids.shape[1]].tolist()
        if not places or places != list(range(places[0], places[-1] + 1)):
            return None
        body = bodies(self.ids[row : row + 1], tokenizer.eos_token_id)[0]
        parts = body[: places[0] - 1], body[places[-1] :]
        before, after = (tokenizer.decode(part).strip() for part in parts)
        return before, after

    def upto(self, length: int) -> Slots:
        """Return the first positions only: a causal encoder says there what it says with all of them."""
        return Slots(self.ids[:, :length], self.at.clamp(max=length))

    def fill(self, tokens: Tensor) -> Tensor:
        """Return the prompts' ids (N, L) with tokens (N, k) in the places."""
        wide = torch.cat([self.ids, self.ids[:, :1]], 1)
        return wide.scatter(1, self.at, tokens.to(wide.device))[:, :-1]

    def conditioning(self, encoder: Any, embeddings: Tensor) -> Tensor:
        """Return the conditioning (N, L, D) with embeddings (N, k, D) in the places."""
        rows, length = embed(encoder, self.ids).detach(), self.ids.shape[1]
        rows = torch.cat([rows, rows[:, :1]], 1)  # one more, for places that the prompt has no room for
        at = self.at[..., None].expand(*self.at.shape, rows.shape[-1])
        return encode(encoder, self.ids, rows.scatter(1, at, embeddings.to(rows.dtype))[:, :-1], slice(0, length))


def bodies(ids: Tensor, eos: int) -> list[list[int]]:
    """Return the tokens of prompts (N, L) between start and end."""
    ends = end_position(ids, eos).tolist()
    return [row[1:end] for row, end in zip(ids.tolist(), ends, strict=True)]


def make_slots(
    prompts: Sequence[Sequence[int]], before: Sequence[Sequence[int]], tokenizer: Any, device: torch.device
) -> Slots:
    """Return prompts with a place in front of each of the given tokens.

    Args:
        prompts: for each of N prompts its token ids without start and end.
        before: for each, in ascending order, the numbers of the tokens that get a place in front; the prompt's length
            is the place at its end, and a number that occurs twice gives two places.
        tokenizer: gives start, end, padding and the full length L; what overflows is cut, the end token never.
        device: where the prompts are to be.
    """
    length, pad = tokenizer.model_max_length, tokenizer.pad_token_id
    most = max(map(len, before), default=0)
    ids = torch.full((len(prompts), length), tokenizer.eos_token_id if pad is None else pad)
    at = torch.full((len(prompts), most), length)
    for n, (tokens, points) in enumerate(zip(prompts, before, strict=True)):
        row: list[int | None] = []
        for i in range(len(tokens) + 1):
            row += [None] * list(points).count(i) + list(tokens[i : i + 1])
        row = row[: length - 2]
        places = [1 + i for i, token in enumerate(row) if token is None]
        at[n, : len(places)] = torch.tensor(places, dtype=torch.long)
        ids[n, : len(row) + 2] = torch.tensor([tokenizer.bos_token_id, *(t or 0 for t in row), tokenizer.eos_token_id])
    return Slots(ids.to(device), at.to(device))


def renamed(body: Sequence[int], names: Sequence[Sequence[int]], template: Sequence[int]) -> tuple[list[int], int]:
    """Return a prompt's tokens without the first of the names that occurs, and where it stood.

    Without any of them it is the template, with the name at its end.
    """
    for name in names:
        try:
            span = find_span(body, name)
        except AdvUnlearnError:
            continue
        return [*body[: span.start], *body[span.stop :]], span.start
    return list(template), len(template)


def in_place_of(
    rows: Sequence[Sequence[int]],
    names: Sequence[Sequence[int]],
    template: Sequence[int],
    tokens: int,
    tokenizer: Any,
    device: torch.device,
) -> Slots:
    """Return prompts, by their tokens, with `tokens` places where one of the names stands, as `renamed` finds it."""
    found = [renamed(row, names, template) for row in rows]
    return make_slots([row for row, _ in found], [[at] * tokens for _, at in found], tokenizer, device)


def in_front(ids: Tensor, tokens: int, tokenizer: Any) -> Slots:
    """Return prompts (N, L) with `tokens` places in front."""
    return Slots(*insert(ids, ids.new_zeros(len(ids), tokens), tokenizer.eos_token_id))


def alone(ids: Tensor, tokens: int, tokenizer: Any) -> Slots:
    """Return N prompts of `tokens` places and nothing else."""
    return Slots(*replace_content(ids, tokens, tokenizer.eos_token_id))


def between(prompts: Sequence[str], every: int, tokenizer: Any, device: torch.device) -> Slots:
    """Return prompts with a place in front of every `every`-th word, the first included; never inside a word."""
    words = [[tokenizer(word).input_ids[1:-1] for word in prompt.split()] for prompt in prompts]
    starts = [list(accumulate(map(len, row), initial=0)) for row in words]  # in tokens; the last is the prompt's end
    rows = [[token for word in row for token in word] for row in words]
    return make_slots(rows, [row[::every] for row in starts], tokenizer, device)
