"""Prompts with slots, whose token embeddings an attack searches: inserted, in place of tokens, or added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from ..config.adversary import Position
from ..errors import AdvUnlearnError
from ..models.chunks import content_positions, pack_chunks, unpack_chunks
from ..models.prompt_tokens import end_position, find_span, insert_slots, num_content_before, replace_content
from ..models.text_encoder import embed, encode
from ..models.tokenizer import Tokenizer, num_chunks, special_tokens


@dataclass(frozen=True)
class PromptSlots:
    """N prompts with k slots each."""

    ids: Tensor  # (N, L) token ids; 0 in the slots, unless their embeddings are added to
    at: Tensor  # (N, k) positions of the slots; L for a slot that the prompt has no room for
    add: bool = False  # whether embeddings are added to those of the prompt's own tokens

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: Tensor) -> PromptSlots:
        """Return some of the prompts, by their indices (n,)."""
        return PromptSlots(self.ids[rows], self.at[rows], self.add)

    def surrounding_text(self, row: int, tokenizer: Tokenizer) -> tuple[str, str] | None:
        """Return the text of a prompt before and after its slots; None if the slots are not contiguous."""
        tokens = content_tokens(self.ids[row : row + 1], tokenizer)[0]
        positions = {at: i for i, at in enumerate(content_positions(len(tokens), tokenizer.model_max_length))}
        slots = [positions.get(at, -1) for at in self.at[row].tolist() if at < self.ids.shape[1]]  # among the tokens
        if not slots or slots != list(range(slots[0], slots[-1] + 1)) or slots[0] < 0:
            return None
        before = str(tokenizer.decode(tokens[: slots[0]])).strip()
        after = str(tokenizer.decode(tokens[slots[-1] + 1 :])).strip()
        return before, after

    def truncate(self, length: int) -> PromptSlots:
        """Return the first positions only: a causal encoder's output there does not depend on later ones."""
        return PromptSlots(self.ids[:, :length], self.at.clamp(max=length), self.add)

    def fill(self, tokens: Tensor) -> Tensor:
        """Return the prompts' ids (N, L) with tokens (N, k) in the slots."""
        padded = torch.cat([self.ids, self.ids[:, :1]], 1)  # one more column, for slots without room
        return padded.scatter(1, self.at, tokens.to(padded.device))[:, :-1]

    def encode(self, encoder: nn.Module, embeddings: Tensor) -> Tensor:
        """Return the conditioning (N, L, D) with embeddings (N, k, D) in the slots."""
        own = embed(encoder, self.ids)  # (N, L, D)
        padded = torch.cat([own, own[:, :1]], 1)  # one more row, for slots without room
        index = self.at[..., None].expand(*self.at.shape, own.shape[-1])
        put = padded.scatter_add if self.add else padded.scatter
        return encode(encoder, self.ids, put(1, index, embeddings.to(own.dtype))[:, :-1], slice(0, self.ids.shape[1]))


def content_tokens(ids: Tensor, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the tokens of prompts (N, L) between their start and end tokens, of all their chunks."""
    length, end = tokenizer.model_max_length, tokenizer.eos_token_id
    return [unpack_chunks(row, length, end) for row in ids.tolist()]


def make_slots(
    prompts: Sequence[Sequence[int]], before: Sequence[Sequence[int]], tokenizer: Tokenizer, device: torch.device
) -> PromptSlots:
    """Return prompts with a slot in front of each of the given tokens.

    Args:
        prompts: for each of N prompts its token ids without start and end.
        before: for each prompt, in ascending order, the indices of the tokens that get a slot in front. The prompt's
            length means a slot at its end; an index that occurs twice gives two slots.
        tokenizer: gives start, end, padding, the full length L and the number of chunks; overflowing tokens are cut.
        device: device of the result.
    """
    length = tokenizer.model_max_length
    count = num_chunks(tokenizer)
    special = special_tokens(tokenizer)
    rows = []
    at = torch.full((len(prompts), max(map(len, before), default=0)), count * length)
    for n, (tokens, points) in enumerate(zip(prompts, before, strict=True)):
        content: list[int | None] = []
        for i in range(len(tokens) + 1):
            content += [None] * list(points).count(i) + list(tokens[i : i + 1])
        content = content[: count * (length - 2)]
        positions = content_positions(len(content), length)
        slots = [position for position, token in zip(positions, content, strict=True) if token is None]
        at[n, : len(slots)] = torch.tensor(slots, dtype=torch.long)
        rows.append(pack_chunks([token or 0 for token in content], length, count, *special))
    return PromptSlots(torch.tensor(rows).view(-1, count * length).to(device), at.to(device))


def without_name(
    tokens: Sequence[int], names: Sequence[Sequence[int]], template: Sequence[int]
) -> tuple[list[int], int]:
    """Return a prompt's tokens without the first of the names that occurs, and the index where it stood.

    Without any of the names, return the template, with the name at its end.
    """
    for name in names:
        try:
            span = find_span(tokens, name)
        except AdvUnlearnError:
            continue
        return [*tokens[: span.start], *tokens[span.stop :]], span.start
    return list(template), len(template)


def replacement_slots(
    prompts: Sequence[Sequence[int]],
    names: Sequence[Sequence[int]],
    template: Sequence[int],
    count: int,
    tokenizer: Tokenizer,
    device: torch.device,
) -> PromptSlots:
    """Return prompts, given by their tokens, with `count` slots where one of the names stands (see `without_name`)."""
    parts = [without_name(tokens, names, template) for tokens in prompts]
    return make_slots([tokens for tokens, _ in parts], [[at] * count for _, at in parts], tokenizer, device)


def prefix_slots(ids: Tensor, count: int, tokenizer: Tokenizer) -> PromptSlots:
    """Return prompts (N, L) with `count` slots in front; the tokens behind them may move to another chunk."""
    if num_chunks(tokenizer) > 1:
        return make_slots(content_tokens(ids, tokenizer), [[0] * count] * len(ids), tokenizer, ids.device)
    return PromptSlots(*insert_slots(ids, ids.new_zeros(len(ids), count), tokenizer.eos_token_id))


def free_slots(ids: Tensor, count: int, tokenizer: Tokenizer) -> PromptSlots:
    """Return N prompts that consist of `count` slots and nothing else."""
    return PromptSlots(*replace_content(ids, count, tokenizer.eos_token_id))


def interleaved_slots(prompts: Sequence[str], interval: int, tokenizer: Tokenizer, device: torch.device) -> PromptSlots:
    """Return prompts with a slot in front of every `interval`-th word, the first included; never inside a word.

    A prompt that leaves too little room has fewer slots, but at least one; it keeps its words, which may name the
    concept.
    """
    words = [[tokenizer(word).input_ids[1:-1] for word in prompt.split()] for prompt in prompts]
    starts = [list(accumulate(map(len, row), initial=0)) for row in words]  # in tokens; the last is the prompt's end
    tokens = [[token for word in row for token in word] for row in words]
    room = num_chunks(tokenizer) * (tokenizer.model_max_length - 2)
    counts = [max(1, room - len(row)) for row in tokens]
    before = [row[::interval][:count] for row, count in zip(starts, counts, strict=True)]
    return make_slots(tokens, before, tokenizer, device)


def position_slots(
    ids: Tensor, count: int, position: Position, eos: int, per_k: int = 3, size: Tensor | None = None
) -> PromptSlots:
    """Return prompts (N, L) with `count` slots at one of the positions that the adversary inside training has.

    With `add`, slots stand on a prompt's own tokens; a prompt of fewer tokens than `count` has fewer slots. The places
    are those of a prompt of `size` (N,) content tokens; by default, of as many as it has.
    """
    if position == "replace":
        return PromptSlots(*replace_content(ids, count, eos))
    size = end_position(ids, eos) - 1 if size is None else size
    if position == "add":
        j = torch.arange(count, device=ids.device)
        return PromptSlots(ids, torch.where(j < size[:, None], 1 + j, ids.shape[1]), add=True)
    return PromptSlots(*insert_slots(ids, num_content_before(size, count, position, per_k), eos))
