"""Stable Diffusion XL's two text encoders as one (arXiv 2307.01952, section 2.1).

Its UNet is conditioned on what both say in their last layer but one, side by side, and on the pooled output of the
larger. Here the pooled output is one more row, so that conditioning is a single tensor (B, L + 1, 2048) as everywhere:
banks, losses and attacks need not know. A token's embedding is both of its embeddings, and an attack searches both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.training import Encoders

NAMES: tuple[Encoders, ...] = ("clip_l", "clip_g")


@dataclass(frozen=True)
class Output:
    """What the encoders say, under the name that a CLIPTextModel has for it."""

    last_hidden_state: Tensor  # (B, L + 1, D_l + D_g)


class SideBySide(nn.Module):
    """Joins the embeddings of both tables (B, L, D_l) and (B, L, D_g); a hook on it sees them as one."""

    def forward(self, *rows: Tensor) -> Tensor:
        """Return (B, L, D_l + D_g)."""
        return torch.cat(rows, -1)


class DualTextEncoder(nn.Module):
    """CLIP-L and CLIP-G behind the interface of one encoder.

    Args:
        clip_l: a transformers CLIPTextModel.
        clip_g: a transformers CLIPTextModelWithProjection.
        padding: the token that CLIP-G pads with; ids come padded as CLIP-L has it.
    """

    def __init__(self, clip_l: Any, clip_g: Any, padding: int = 0) -> None:
        super().__init__()
        self.clip_l, self.clip_g, self.padding = clip_l, clip_g, padding
        self.joint = SideBySide()

    def encoders(self) -> dict[Encoders, Any]:
        """Return the two encoders by name."""
        return {"clip_l": self.clip_l, "clip_g": self.clip_g}

    def tables(self) -> tuple[Tensor, Tensor]:
        """Return both token embedding tables (V, D_l), (V, D_g)."""
        first, second = (encoder.get_input_embeddings().weight for encoder in self.encoders().values())
        return first, second

    def embedding_table(self) -> Tensor:
        """Return both tables side by side (V, D_l + D_g)."""
        return torch.cat(self.tables(), -1)

    def get_input_embeddings(self) -> nn.Module:
        """Return the module whose output are the joined embeddings."""
        return self.joint

    def padded(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids (B, L) as each encoder pads them."""
        end = ids.argmax(-1, keepdim=True)  # the end of text is the highest token
        behind = torch.arange(ids.shape[1], device=ids.device) > end
        return ids, ids.masked_fill(behind, self.padding)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the joined embeddings (B, L, D_l + D_g) of ids (B, L)."""
        parts = [F.embedding(own, table) for own, table in zip(self.padded(ids), self.tables(), strict=True)]
        return self.joint(*parts)

    def reaching(self, which: Encoders) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the names and parameters of the chosen encoders that the conditioning depends on.

        CLIP-L's last layer and final norm are never looked at; those of CLIP-G are, by its pooled output.
        """
        last = f"layers.{self.clip_l.config.num_hidden_layers - 1}."
        for name, parameter in self.named_parameters():
            unseen = name.startswith("clip_l.") and (last in name or "final_layer_norm" in name)
            if not unseen and (which == "both" or name.startswith(which)):
                yield name, parameter

    def forward(self, ids: Tensor) -> Output:
        """Encode token ids (B, L)."""
        rows = self.embed(ids).split([table.shape[1] for table in self.tables()], -1)
        said = [
            _encoded(encoder, own, row)
            for encoder, own, row in zip(self.encoders().values(), self.padded(ids), rows, strict=True)
        ]
        hidden = torch.cat([output.hidden_states[-2] for output in said], -1)
        pooled = said[1].text_embeds
        pooled = F.pad(pooled, (0, hidden.shape[-1] - pooled.shape[-1]))[:, None]
        return Output(torch.cat([hidden, pooled.to(hidden.dtype)], 1))


def _encoded(encoder: Any, ids: Tensor, embeddings: Tensor) -> Any:
    """Return what an encoder says of ids (B, L) with these embeddings (B, L, D) for its tokens."""
    table = encoder.get_input_embeddings()
    handle = table.register_forward_hook(lambda module, inputs, output: embeddings.to(output.dtype))
    try:
        return encoder(ids, output_hidden_states=True)
    finally:
        handle.remove()


def split_conditioning(conditioning: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return hidden states (B, L, D) and pooled output (B, `width`) of a conditioning (B, L + 1, D)."""
    return conditioning[:, :-1], conditioning[:, -1, :width]
