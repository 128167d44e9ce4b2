"""Token ids of prompts, with a tokenizer of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .chunks import pack_chunks


class Tokenizer(Protocol):
    """The part of a transformers CLIPTokenizer that the library uses."""

    model_max_length: int  # in tokens, with start and end of text; 77 for CLIP
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int | None

    def __hash__(self) -> int:
        """Return the hash of the object's identity."""
        ...

    def __len__(self) -> int:
        """Return the size of the vocabulary."""
        ...

    def __call__(self, text: str | list[str], **options: object) -> Any:
        """Return an object whose `input_ids` are a text's token ids with start and end of text, or a list of them."""
        ...

    def decode(self, token_ids: Sequence[int] | Tensor) -> str:
        """Return the text of token ids."""
        ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Return the vocabulary's entries."""
        ...


def num_chunks(tokenizer: Tokenizer) -> int:
    """Return how many chunks a prompt has, see `chunks`: 1 unless `TextToImage.fit_prompts` has set more."""
    return getattr(tokenizer, "num_chunks", 1)


def tokenize(tokenizer: Tokenizer, prompts: Sequence[str]) -> Tensor:
    """Return token ids (B, n L), padded to the tokenizer's full length L (77 for CLIP), as all hosts do.

    n is the tokenizer's number of chunks; longer prompts are cut.
    """
    length = tokenizer.model_max_length
    count = num_chunks(tokenizer)
    if count > 1:
        contents = split_prompts(tokenizer, prompts)
        return torch.tensor([pack_chunks(ids, length, count, *special_tokens(tokenizer)) for ids in contents])
    batch = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return batch.input_ids


def split_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of prompts of any length, without start and end."""
    if not prompts:
        return []
    # Without `verbose` transformers logs that a long prompt "will result in indexing errors".
    return [list(ids[1:-1]) for ids in tokenizer(list(prompts), verbose=False).input_ids]


def special_tokens(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Return the ids of start, end and padding."""
    end = tokenizer.eos_token_id
    return tokenizer.bos_token_id, end, end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
