"""Where tokens stand in a prompt: the span of a phrase, and room for the tokens of an attack.

A prompt is one row of ids: a start token, its content, an end-of-text token, padding. All is counted in tokens, never
in words: "nudity" is two tokens, and both belong to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.adversary import Position
from ..errors import AdvUnlearnError


def end_position(ids: Tensor, eos: int) -> Tensor:
    """Return the index (B,) of each row's first end-of-text token; `ids` is (B, L)."""
    return (ids == eos).int().argmax(dim=1)


def find_span(ids: Sequence[int], phrase: Sequence[int]) -> slice:
    """Return where the token ids of a phrase stand in a prompt's token ids.

    The span is counted in tokens, not in words: "nudity" is two tokens, and both belong to it.
    Raises AdvUnlearnError when the phrase is not there.
    """
    size = len(phrase)
    for start in range(len(ids) - size + 1):
        if size and list(ids[start : start + size]) == list(phrase):
            return slice(start, start + size)
    raise AdvUnlearnError(f"the tokens {list(phrase)} do not occur in the prompt's tokens {list(ids)}")


def content_before(size: Tensor, count: int, position: Position, every: int = 3) -> Tensor:
    """Return how many of a prompt's content tokens stand before each of `count` inserted ones.

    Args:
        size: (B,) number of content tokens n of each prompt.
        count: number of inserted tokens k; the j-th of them, from 0, stands behind
            prefix: 0 content tokens; suffix: all n; middle: n // 2; interleaved: (j + 1) n // (k + 1), so that the
            gaps are alike; per_k: j * every, and those left over at the end.
        position: one of these; `replace` and `add` insert nothing.
        every: content tokens between two inserted ones of `per_k`.

    Returns:
        (B, k), never falling along a row.
    """
    j, n = torch.arange(count, device=size.device), size[:, None]
    behind = {
        "prefix": 0 * j * n,
        "suffix": n + 0 * j,
        "middle": n // 2 + 0 * j,
        "interleaved": (j + 1) * n // (count + 1),
        "per_k": torch.minimum(j * every, n),
    }
    return behind[position]


def insert(ids: Tensor, behind: Tensor, eos: int, placeholder: int = 0) -> tuple[Tensor, Tensor]:
    """Make room among the content tokens.

    Args:
        ids: (B, L) token ids with a start token first and at least one `eos`.
        behind: (B, k) number of content tokens before each inserted one, never falling along a row.
        eos: id of the end-of-text token.
        placeholder: id that stands in the inserted places; its embedding is replaced by the caller.

    Returns:
        ids (B, L) and the inserted places (B, k). A prompt that would overflow loses tokens at its end, never its end
        token nor an inserted one; `check_room` refuses such a prompt beforehand.
    """
    count = behind.shape[1]
    places = 1 + behind.clamp(max=ids.shape[1] - 2 - count) + torch.arange(count, device=ids.device)
    inserted = torch.zeros_like(ids, dtype=torch.bool).scatter(1, places, True)
    source = (~inserted).long().cumsum(1) - 1  # the j-th place that is not inserted takes the j-th old token
    longer = torch.where(inserted, placeholder, ids.gather(1, source.clamp(min=0)))
    longer[:, -1] = torch.where((longer == eos).any(1), longer[:, -1], eos)
    return longer, places


def insert_prefix(ids: Tensor, count: int, eos: int, placeholder: int = 0) -> tuple[Tensor, slice]:
    """Make room for `count` tokens right after the start token of (B, L) ids; return ids (B, L) and that span.

    A prompt that would overflow loses tokens at its end, as it does in any host when the prefix is typed as text.
    """
    behind = ids.new_zeros((len(ids), count))
    return insert(ids, behind, eos, placeholder)[0], slice(1, 1 + count)


def replace_content(ids: Tensor, count: int, eos: int, placeholder: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids (B, L) of start token, `count` placeholders and end of text alone, and their places (B, count)."""
    places = torch.arange(1, 1 + count, device=ids.device).expand(len(ids), count)
    replaced = torch.full_like(ids, eos)
    replaced[:, 0] = ids[:, 0]
    return replaced.scatter(1, places, placeholder), places


def check_room(tokenizer: Any, prompts: Sequence[str], count: int = 0) -> None:
    """Raise AdvUnlearnError for a prompt that does not fit into the tokenizer's length with `count` tokens more."""
    room = tokenizer.model_max_length - 2 - count  # between start and end of text
    for prompt, ids in zip(prompts, tokenizer(list(prompts)).input_ids, strict=True):
        if len(ids) - 2 > room:
            attack = f" and {count} adversarial tokens" if count else ""
            raise AdvUnlearnError(
                f"the prompt {prompt!r} has {len(ids) - 2} tokens; the text encoder takes "
                f"{tokenizer.model_max_length - 2}{attack and ' of prompt' + attack + ' together'}; shorten it"
                f"{' or lower the number of adversarial tokens' if count else ''}"
            )
