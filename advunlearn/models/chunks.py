"""Prompts that are longer than a text encoder reads, in chunks as ComfyUI encodes them.

A chunk is a row of L tokens (77 for CLIP): a start token, up to L - 2 tokens of the prompt, an end token, padding.
Every chunk is encoded by itself, and the hidden states are concatenated along the sequence. All prompts of a run have
rows of the same number of chunks; a shorter prompt leaves chunks without a start token. Its hidden states are repeated
to the same length, which does not change what attention returns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_CHUNKS = 4  # of one prompt; the conditioning of a run with N chunks has lcm(1, ..., N) of them: 12 for 4


def count_chunks(size: int, length: int) -> int:
    """Return how many chunks of `length` tokens, start and end included, `size` content tokens need; at least 1."""
    return max(1, math.ceil(size / (length - 2)))


def content_positions(size: int, length: int) -> list[int]:
    """Return the positions in a row of chunks of `size` content tokens."""
    return [i // (length - 2) * length + 1 + i % (length - 2) for i in range(size)]


def pack_chunks(tokens: Sequence[int], length: int, count: int, start: int, end: int, padding: int) -> list[int]:
    """Return content tokens as a row of `count` chunks; tokens that exceed it are cut."""
    tokens = tokens[: count * (length - 2)]
    row: list[int] = []
    for i in range(count_chunks(len(tokens), length)):
        part = [start, *tokens[i * (length - 2) : (i + 1) * (length - 2)], end]
        row += part + [padding] * (length - len(part))
    return row + [padding] * (count * length - len(row))


def unpack_chunks(row: Sequence[int], length: int, end: int) -> list[int]:
    """Return the content tokens of a row of chunks."""
    first = row[0]
    parts = [row[i : i + length] for i in range(0, len(row), length) if row[i] == first]
    return [token for part in parts for token in itertools.takewhile(lambda token: token != end, part[1:])]


def join_chunks(hidden: Tensor, ids: Tensor) -> Tensor:
    """Return the conditioning of B prompts from the hidden states of their chunks.

    Args:
        hidden: (B * n, L + p, D) hidden states of every chunk; p rows behind them, such as SDXL's pooled output, are
            those of the first chunk.
        ids: (B, n, L) token ids.

    Returns:
        (B, lcm(1, ..., n) * L + p, D): the chunks of each prompt, repeated in turn.
    """
    prompts, n, length = ids.shape
    used = (ids[:, :, 0] == ids[:, :1, 0]).sum(1, keepdim=True)  # (B, 1) chunks that the prompt has
    turn = torch.arange(math.lcm(*range(1, n + 1)), device=ids.device) % used  # (B, lcm)
    by_chunk = hidden.unflatten(0, (prompts, n))  # (B, n, L + p, D)
    states = by_chunk[torch.arange(prompts, device=ids.device)[:, None], turn, :length]  # (B, lcm, L, D)
    return torch.cat([states.flatten(1, 2), by_chunk[:, 0, length:]], 1)
