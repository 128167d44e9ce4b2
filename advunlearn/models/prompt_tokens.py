"""Positions of tokens in a prompt: find a phrase, and insert slots for the tokens of an attack.

A prompt is one row of token ids: a start token, content tokens, an end-of-text token, padding. Lengths and positions
are in tokens, not in words: "nudity" is two tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config.adversary import Position
from ..errors import AdvUnlearnError
from .chunks import MAX_CHUNKS, count_chunks
from .tokenizer import Tokenizer, num_chunks, split_prompts


def end_position(ids: Tensor, eos: int) -> Tensor:
    """Return the position (B,) of the first end-of-text token in each row of `ids` (B, L)."""
    return (ids == eos).int().argmax(dim=1)


def find_span(ids: Sequence[int], phrase: Sequence[int]) -> slice:
    """Return the positions of the first occurrence of a phrase in a prompt, both given as token ids.

    Raises AdvUnlearnError when the phrase does not occur.
    """
    size = len(phrase)
    for start in range(len(ids) - size + 1):
        if size and list(ids[start : start + size]) == list(phrase):
            return slice(start, start + size)
    raise AdvUnlearnError(f"the tokens {list(phrase)} do not occur in the prompt's tokens {list(ids)}")


def num_content_before(size: Tensor, count: int, position: Position, every: int = 3) -> Tensor:
    """Return the number of content tokens in front of each of `count` slots.

    Args:
        size: (B,) number of content tokens n of each prompt.
        count: number of slots k.
        position: rule for slot j = 0, ..., k - 1. prefix: 0 content tokens are in front of it; suffix: n;
            middle: n // 2; interleaved: (j + 1) n // (k + 1), which spaces the slots evenly; per_k: j * every, at
            most n. `replace` and `add` insert no slots.
        every: number of content tokens between two slots of `per_k`.

    Returns:
        (B, k), non-decreasing along each row.
    """
    j = torch.arange(count, device=size.device)
    n = size[:, None]
    before = {
        "prefix": 0 * j * n,
        "suffix": n + 0 * j,
        "middle": n // 2 + 0 * j,
        "interleaved": (j + 1) * n // (count + 1),
        "per_k": torch.minimum(j * every, n),
    }
    return before[position]


def insert_slots(ids: Tensor, before: Tensor, eos: int, placeholder: int = 0) -> tuple[Tensor, Tensor]:
    """Insert slots between the content tokens of prompts.

    A prompt that becomes too long loses content tokens at its end, but neither its end token nor a slot.
    `check_prompt_length` rejects such a prompt beforehand.

    Args:
        ids: (B, L) token ids with a start token first and at least one `eos`.
        before: (B, k) number of content tokens in front of each slot, non-decreasing along each row.
        eos: id of the end-of-text token.
        placeholder: id in the slots; the caller replaces its embedding.

    Returns:
        ids (B, L) and the positions of the slots (B, k).
    """
    count = before.shape[1]
    positions = 1 + before.clamp(max=ids.shape[1] - 2 - count) + torch.arange(count, device=ids.device)
    is_slot = torch.zeros_like(ids, dtype=torch.bool).scatter(1, positions, True)
    source = (~is_slot).long().cumsum(1) - 1  # the j-th position that is no slot takes the j-th token of `ids`
    longer = torch.where(is_slot, placeholder, ids.gather(1, source.clamp(min=0)))
    longer[:, -1] = torch.where((longer == eos).any(1), longer[:, -1], eos)
    return longer, positions


def replace_content(ids: Tensor, count: int, eos: int, placeholder: int = 0) -> tuple[Tensor, Tensor]:
    """Replace all content tokens of prompts (B, L) by `count` slots; return ids (B, L) and positions (B, count)."""
    positions = torch.arange(1, 1 + count, device=ids.device).expand(len(ids), count)
    replaced = torch.full_like(ids, eos)
    replaced[:, 0] = ids[:, 0]
    return replaced.scatter(1, positions, placeholder), positions


def check_prompt_length(tokenizer: Tokenizer, prompts: Sequence[str], count: int = 0) -> None:
    """Raise AdvUnlearnError for a prompt that, with `count` more tokens, is too long for the tokenizer's chunks."""
    longest = num_chunks(tokenizer) * (tokenizer.model_max_length - 2)  # without start and end of text
    for prompt, ids in zip(prompts, split_prompts(tokenizer, prompts), strict=True):
        if len(ids) + count > longest:
            attack = f" of prompt and {count} adversarial tokens together" if count else ""
            advice = " or lower the number of adversarial tokens" if count else ""
            raise AdvUnlearnError(
                f"the prompt {_shorten(prompt)} has {len(ids)} tokens; the text encoder takes {longest}{attack}; "
                f"shorten it{advice}"
            )


def find_long_prompts(tokenizer: Tokenizer, prompts: Sequence[str], chunks: int = 1) -> dict[str, int]:
    """Return the prompts that do not fit into `chunks` chunks, with their numbers of tokens."""
    unique = list(dict.fromkeys(prompts))
    lengths = [len(ids) for ids in split_prompts(tokenizer, unique)]
    longest = chunks * (tokenizer.model_max_length - 2)
    return {prompt: n for prompt, n in zip(unique, lengths, strict=True) if n > longest}


def find_cut_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> dict[str, int]:
    """Return the prompts of which `tokenize` cuts off the end, with their numbers of tokens."""
    return find_long_prompts(tokenizer, prompts, num_chunks(tokenizer))


def fit_tokenizer(tokenizer: Tokenizer, prompts: Sequence[str], inserted: int = 0) -> Tokenizer:
    """Return a tokenizer with as many chunks as the longest prompt needs together with `inserted` adversarial tokens.

    It is the same object if they all fit into one. Prompts of more than `MAX_CHUNKS` are cut.
    """
    longest = max((len(ids) for ids in split_prompts(tokenizer, prompts)), default=0)
    count = min(MAX_CHUNKS, count_chunks(longest + inserted, tokenizer.model_max_length))
    if count <= num_chunks(tokenizer):
        return tokenizer
    fitted = copy.copy(tokenizer)
    fitted.num_chunks = count  # type: ignore[attr-defined]  # of this copy only; `num_chunks` reads it
    return fitted


def describe_long_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> str:
    """Return a note about prompts with more tokens than the text encoder reads at once, "" if there are none."""
    long = find_long_prompts(tokenizer, prompts)
    if not long:
        return ""
    cut = find_cut_prompts(tokenizer, prompts)
    first, tokens = next(iter((cut or long).items()))
    size = tokenizer.model_max_length - 2
    total = len(set(prompts))
    example = f"{_shorten(first)} ({tokens} tokens)"
    if not cut:
        return (
            f"{len(long)} of {total} prompts have more than {size} tokens and are encoded in chunks, as ComfyUI does "
            f"(long_prompts cut: as diffusers does): {example}"
        )
    return (
        f"{len(cut)} of {total} prompts have more than {size * num_chunks(tokenizer)} tokens and are cut; what they "
        f"name behind the cut is not generated, while ComfyUI encodes it in further chunks: {example}"
    )


def _shorten(prompt: str, length: int = 60) -> str:
    return f"{prompt[:length]!r}..." if len(prompt) > length else repr(prompt)
