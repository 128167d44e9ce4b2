"""Stable Diffusion XL's two text encoders as one (arXiv 2307.01952, section 2.1).

The UNet of Stable Diffusion XL is conditioned on the hidden states of both encoders before their last layer,
concatenated along the channels, and on the pooled output of the larger encoder. Here the pooled output is an additional
row, so that the conditioning is a single tensor (B, L + 1, 2048) and banks, losses and attacks need no special case. A
token's embedding is the concatenation of its two embeddings, and an attack searches both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.training import Encoders
from .text_encoder import clip_token_embeddings

if TYPE_CHECKING:
    from transformers import CLIPPreTrainedModel, CLIPTextModel, CLIPTextModelWithProjection


@dataclass(frozen=True)
class TextEncoderOutput:
    """The conditioning, named like the output of a CLIPTextModel."""

    last_hidden_state: Tensor  # (B, L + 1, D_l + D_g)


class JoinedEmbeddings(nn.Module):
    """Concatenates the embeddings (B, L, D_l) and (B, L, D_g), so that one hook can replace both."""

    def forward(self, *embeddings: Tensor) -> Tensor:
        """Return (B, L, D_l + D_g)."""
        return torch.cat(embeddings, -1)


class DualTextEncoder(nn.Module):
    """CLIP-L and CLIP-G with the interface of one encoder (`TextEncoder`).

    Args:
        clip_l: a transformers CLIPTextModel.
        clip_g: a transformers CLIPTextModelWithProjection.
        padding: id of CLIP-G's padding token; the ids to encode are padded with CLIP-L's.
    """

    def __init__(self, clip_l: CLIPTextModel, clip_g: CLIPTextModelWithProjection, padding: int = 0) -> None:
        super().__init__()
        self.clip_l = clip_l
        self.clip_g = clip_g
        self.padding = padding
        self.joined = JoinedEmbeddings()

    def parts(self) -> dict[str, nn.Module]:
        """Return the two encoders by name."""
        return {"clip_l": self.clip_l, "clip_g": self.clip_g}

    def tables(self) -> list[Tensor]:
        """Return both token embedding tables (V, D_l), (V, D_g)."""
        return list(map(clip_token_embeddings, self.parts().values()))

    def get_input_embeddings(self) -> nn.Module:
        """Return the module whose output is the joined embeddings."""
        return self.joined

    def pad_ids(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids (B, L) with the padding of each encoder."""
        end = ids.argmax(-1, keepdim=True)  # the end of text is the highest id
        behind = torch.arange(ids.shape[1], device=ids.device) > end
        return ids, ids.masked_fill(behind, self.padding)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the joined embeddings (B, L, D_l + D_g) of ids (B, L)."""
        padded = zip(self.pad_ids(ids), self.tables(), strict=True)
        return self.joined(*(F.embedding(part_ids, table) for part_ids, table in padded))

    def conditioning_parameters(self, encoders: Encoders) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the names and parameters of the chosen encoders that the conditioning depends on.

        CLIP-L's last layer and final norm have no effect on it; CLIP-G's do, through the pooled output.
        """
        last = f"layers.{self.clip_l.config.num_hidden_layers - 1}."
        for name, parameter in self.named_parameters():
            unused = name.startswith("clip_l.") and (last in name or "final_layer_norm" in name)
            if not unused and (encoders == "both" or name.startswith(encoders)):
                yield name, parameter

    def forward(self, ids: Tensor) -> TextEncoderOutput:
        """Encode token ids (B, L)."""
        embeddings = self.embed(ids).split([table.shape[1] for table in self.tables()], -1)
        outputs = [
            _encode_part(encoder, part_ids, rows)
            for encoder, part_ids, rows in zip((self.clip_l, self.clip_g), self.pad_ids(ids), embeddings, strict=True)
        ]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)  # (B, L, D_l + D_g)
        pooled = outputs[1].text_embeds  # (B, P)
        pooled = F.pad(pooled, (0, hidden.shape[-1] - pooled.shape[-1]))[:, None]
        return TextEncoderOutput(torch.cat([hidden, pooled.to(hidden.dtype)], 1))


def _encode_part(encoder: CLIPPreTrainedModel, ids: Tensor, embeddings: Tensor) -> Any:
    """Return an encoder's output for ids (B, L) whose token embeddings are replaced by `embeddings` (B, L, D)."""
    table = encoder.get_input_embeddings()
    handle = table.register_forward_hook(lambda module, inputs, output: embeddings.to(output.dtype))
    try:
        return encoder(ids, output_hidden_states=True)
    finally:
        handle.remove()


def split_conditioning(conditioning: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the hidden states (B, L, D) and the pooled output (B, `width`) of a conditioning (B, L + 1, D)."""
    return conditioning[:, :-1], conditioning[:, -1, :width]
