"""Tokens and text: the tokens that an attack may use, and whether a found prompt can be typed."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..files import JsonDict
from ..models.tokenizer import Tokenizer

# An adversarial prompt in a report: "prompt", its searched "tokens" as text, and "exact", whether tokenizing the prompt
# gives the same tokens again; attacks may add more.
PromptRow = JsonDict


def search_vocabulary(tokenizer: Tokenizer) -> Tensor:
    """Return the ids of all tokens but the two special ones and the single bytes."""
    first = 512  # CLIP's first 512 ids are the byte alphabet, within a word and at its end
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return torch.tensor([i for i in range(first, len(tokenizer)) if i not in special])


@functools.lru_cache(maxsize=4)
def typed_vocabulary(tokenizer: Tokenizer) -> Tensor:
    """Return the ids of the search vocabulary that can be typed: tokenizing their text gives the same token."""
    ids = search_vocabulary(tokenizer)
    split = tokenizer([tokenizer.decode([i]) for i in ids.tolist()]).input_ids
    return torch.tensor([i for i, row in zip(ids.tolist(), split, strict=True) if row[1:-1] == [i]])


def normalize_rows(rows: Tensor) -> Tensor:
    """Return rows (..., D) scaled to length 1, in fp32."""
    return torch.nn.functional.normalize(rows.float(), dim=-1)


def find_nearest(points: Tensor, directions: Tensor) -> Tensor:
    """Return the index (...) of the direction, a row of length 1 of (V, D), nearest by angle to each point (..., D)."""
    return (points.float() @ directions.T).argmax(-1)


def replace_untypable(ids: Tensor, table: Tensor, typable: Tensor) -> Tensor:
    """Return token ids with each one outside `typable` (V',) replaced by the nearest one in it; table (V, D)."""
    if torch.isin(ids, typable.to(ids.device)).all():
        return ids
    table = table.to(ids.device)
    typable = typable.to(ids.device)
    nearest = typable[find_nearest(table[ids], normalize_rows(table[typable]))]
    return torch.where(torch.isin(ids, typable), ids, nearest)


def exclude_words(vocabulary: Tensor, words: Sequence[str], tokenizer: Tokenizer) -> Tensor:
    """Return the ids of a vocabulary (V,) whose text contains none of the words, ignoring case."""
    texts = (str(tokenizer.decode([i])).strip().lower() for i in vocabulary.tolist())
    return vocabulary[[not any(word in text for word in words) for text in texts]]


def describe_prompt(tokenizer: Tokenizer, content: Sequence[int], searched: Sequence[int]) -> PromptRow:
    """Return a prompt of `content` tokens, of which `searched` were found, as text, see `PromptRow`."""
    text = tokenizer.decode(list(content))
    exact = tokenizer(text).input_ids[1:-1] == list(content)
    return {"prompt": text, "tokens": tokenizer.convert_ids_to_tokens(list(searched)), "exact": exact}


def describe_prefix(tokenizer: Tokenizer, prefix: Tensor, prompt: str) -> PromptRow:
    """Return prefix tokens (k,) in front of a prompt, which stays as it is written, as text, see `PromptRow`."""
    text = f"{tokenizer.decode(prefix)} {prompt}"
    exact = tokenizer(text).input_ids[1:-1] == prefix.tolist() + tokenizer(prompt).input_ids[1:-1]
    return {"prompt": text, "tokens": tokenizer.convert_ids_to_tokens(prefix.tolist()), "exact": exact}
