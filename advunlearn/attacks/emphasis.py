"""Emphasis: the concept's name with a weight, as ComfyUI's prompts have it: "a (church:2)".

ComfyUI applies a weight w to a token's output of the text encoder: z_0 + w (z - z_0), where z_0 is the output of the
empty prompt at the same position (comfy/sd1_clip.py, ClipTokenWeightEncoder). This leaves the outputs that the encoder
was trained on, and can be typed.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.attacks import EmphasisConfig
from ..errors import AdvUnlearnError
from ..models.chunks import join_chunks
from ..models.prompt_tokens import find_span
from ..models.tokenizer import Tokenizer, special_tokens, tokenize
from .seed_search import PlainPromptAttack
from .vocabulary import PromptRow


def emphasize(conditioning: Tensor, empty: Tensor, chosen: Tensor, weight: float) -> Tensor:
    """Return conditioning (N, L, D) with a weight on the chosen positions (N, L); empty (1, L, D) has weight 0."""
    return torch.where(chosen[..., None], empty + weight * (conditioning - empty), conditioning)


def spread_over_conditioning(chosen: Tensor, ids: Tensor, length: int, rows: int) -> Tensor:
    """Return which rows (N, rows) of the conditioning belong to chosen tokens (N, n * length), see `join_chunks`.

    Rows behind those of the tokens, such as SDXL's pooled output, have no weight in ComfyUI.
    """
    by_chunk = chosen.unflatten(1, (-1, length)).flatten(0, 1)[..., None]  # (N * n, length, 1)
    joined = join_chunks(by_chunk, ids.unflatten(1, (-1, length)))[..., 0]
    return F.pad(joined, (0, rows - joined.shape[1]))


def add_weight(prompt: str, names: tuple[str, ...], weight: float) -> str:
    """Return a prompt with a weight on the first of the names that occurs, or on all of it if none does."""
    for name in sorted(names, key=len, reverse=True):
        pattern = rf"\b{re.escape(name)}\b"
        if re.search(pattern, prompt, re.IGNORECASE):
            return re.sub(pattern, lambda match: f"({match[0]}:{weight:g})", prompt, count=1, flags=re.IGNORECASE)
    return f"({prompt}:{weight:g})"


def find_name(ids: list[int], names: tuple[str, ...], tokenizer: Tokenizer) -> list[bool]:
    """Return which tokens of a prompt (L) are the first of the names that occurs; its whole content if none does."""
    for name in sorted(names, key=len, reverse=True):
        try:
            span = find_span(ids, tokenizer(name).input_ids[1:-1])
        except AdvUnlearnError:
            continue
        return [span.start <= i < span.stop for i in range(len(ids))]
    return [token not in special_tokens(tokenizer) for token in ids]


class Emphasis(PlainPromptAttack):
    """The plain prompt with another weight on the concept's name in each step."""

    name = "emphasis"
    needs = ("concept",)
    restarts = False
    config_class = EmphasisConfig
    config: EmphasisConfig

    def start(self) -> None:
        """Find the name in the prompts, and encode them."""
        super().start()
        context = self.context
        assert context.concept is not None  # see `needs`
        self.names = context.concept.names
        ids = tokenize(context.tokenizer, context.prompts)
        chosen = torch.tensor([find_name(row, self.names, context.tokenizer) for row in ids.tolist()])
        self.plain = self.conditioning
        self.empty = context.encode([""])
        self.chosen = spread_over_conditioning(chosen, ids, context.tokenizer.model_max_length, self.plain.shape[1])

    @property
    def weight(self) -> float:
        """The current weight; before the first step 1."""
        return self.config.values[(self.steps_taken - 1) % len(self.config.values)] if self.steps_taken else 1.0

    def step(self) -> Tensor:
        """Take the next weight."""
        losses = super().step()
        self.conditioning = emphasize(self.plain, self.empty, self.chosen.to(self.plain.device), self.weight)
        return losses

    def prompts(self) -> list[PromptRow]:
        """Return the prompts as ComfyUI reads them, and their weight."""
        rows = zip(super().prompts(), self.context.prompts, strict=True)
        return [row | {"prompt": add_weight(p, self.names, self.weight), "weight": self.weight} for row, p in rows]
