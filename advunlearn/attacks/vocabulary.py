"""Tokens and text: which tokens an attack may use, and whether what it found can be typed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def search_vocabulary(tokenizer: Any) -> Tensor:
    """Return the ids that the attacks may use: all but the two special tokens and the bare bytes."""
    bare = 512  # CLIP's first 512 ids are the byte alphabet, alone and as a word's end
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return torch.tensor([i for i in range(bare, len(tokenizer)) if i not in special])


@functools.lru_cache(maxsize=4)
def typed_vocabulary(tokenizer: Any) -> Tensor:
    """Return those ids of the search vocabulary that a keyboard gives back: whole words that split into themselves."""
    ids = search_vocabulary(tokenizer)
    split = tokenizer([tokenizer.decode([i]) for i in ids.tolist()]).input_ids
    return torch.tensor([i for i, row in zip(ids.tolist(), split, strict=True) if row[1:-1] == [i]])


def unit(rows: Tensor) -> Tensor:
    """Return rows (..., D) of length 1, in fp32."""
    return torch.nn.functional.normalize(rows.float(), dim=-1)


def nearest(points: Tensor, directions: Tensor) -> Tensor:
    """Return the number (...) of the direction, a row of length 1 of (V, D), that is nearest to each point (..., D)."""
    return (points.float() @ directions.T).argmax(-1)


def repaired(ids: Tensor, table: Tensor, typed: Tensor) -> Tensor:
    """Return token ids with each one that is not in `typed` (V',) replaced by the nearest that is; table (V, D)."""
    if torch.isin(ids, typed.to(ids.device)).all():
        return ids
    table, typed = table.to(ids.device), typed.to(ids.device)
    near = typed[nearest(table[ids], unit(table[typed]))]
    return torch.where(torch.isin(ids, typed), ids, near)


def without(vocabulary: Tensor, words: Sequence[str], tokenizer: Any) -> Tensor:
    """Return the ids of a vocabulary (V,) whose text contains none of the words; case does not matter."""
    texts = (tokenizer.decode([i]).strip().lower() for i in vocabulary.tolist())
    return vocabulary[[not any(word in text for word in words) for text in texts]]


def as_text(tokenizer: Any, ids: Tensor, prompt: str) -> dict[str, Any]:
    """Return prefix tokens (k,) and a prompt as text; `exact` says whether it splits into those tokens again."""
    text = f"{tokenizer.decode(ids)} {prompt}"
    exact = tokenizer(text).input_ids[1:-1] == ids.tolist() + tokenizer(prompt).input_ids[1:-1]
    return {"prompt": text, "tokens": tokenizer.convert_ids_to_tokens(ids.tolist()), "exact": exact}


def whole_text(tokenizer: Any, body: Sequence[int], tokens: Sequence[int]) -> dict[str, Any]:
    """Return a whole prompt, of which `tokens` were found, as text; `exact` as in `as_text`."""
    text = tokenizer.decode(list(body))
    exact = tokenizer(text).input_ids[1:-1] == list(body)
    return {"prompt": text, "tokens": tokenizer.convert_ids_to_tokens(list(tokens)), "exact": exact}
