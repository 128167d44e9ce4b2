"""Text encoders: encode prompts from token ids or from embeddings, and choose the parameters that train.

An encoder is a transformers CLIPTextModel (Stable Diffusion 1.x) or a `DualTextEncoder` (Stable Diffusion XL). Where
the two differ, callers go through the protocol `TextEncoder`.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.training import ENCODER_NAMES, Encoders, FinalNorm, Trainable
from ..errors import AdvUnlearnError
from .chunks import join_chunks
from .placement import move_modules, on_device
from .tokenizer import Tokenizer, tokenize

TRAINABLE_PATTERNS: dict[Trainable, str] = {
    "layers": r"\blayers\.",
    "attention": r"\bself_attn\.",
    "mlp": r"\bmlp\.",
    "all": r"",
}


@runtime_checkable
class TextEncoder(Protocol):
    """One or more CLIP text encoders behind one interface; `as_text_encoder` returns it for any encoder."""

    def parts(self) -> dict[str, nn.Module]:
        """Return the CLIP encoders by name (`clip_l`, `clip_g`), in the order of their embeddings' columns."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Return the token embeddings (B, L, D) of ids (B, L); D is the sum of the parts' widths."""
        ...

    def conditioning_parameters(self, encoders: Encoders) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the names and parameters of the chosen parts that the conditioning depends on."""
        ...


@dataclass(frozen=True)
class SingleTextEncoder:
    """A transformers CLIPTextModel as a `TextEncoder`."""

    clip: nn.Module

    def parts(self) -> dict[str, nn.Module]:
        """Return the encoder under the name of its embeddings in a textual inversion's file."""
        return {ENCODER_NAMES[0]: self.clip}

    def embed(self, ids: Tensor) -> Tensor:
        """Return the token embeddings (B, L, D) of ids (B, L)."""
        return F.embedding(ids, embedding_table(self.clip))

    def conditioning_parameters(self, encoders: Encoders) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all names and parameters, except those of skipped layers."""
        layers: int = self.clip.config.num_hidden_layers  # type: ignore[union-attr, assignment]
        skipped = tuple(f"layers.{layers - 1 - i}." for i in range(get_clip_skip(self.clip)))
        for name, parameter in self.clip.named_parameters():
            if not any(layer in name for layer in skipped):
                yield name, parameter


def as_text_encoder(encoder: nn.Module) -> TextEncoder:
    """Return the encoder if it implements `TextEncoder`; otherwise wrap it, a CLIPTextModel."""
    return encoder if isinstance(encoder, TextEncoder) else SingleTextEncoder(encoder)


def encoder_parts(encoder: nn.Module) -> dict[str, nn.Module]:
    """Return the CLIP encoders of a text encoder by name: one of Stable Diffusion 1.x, two of XL."""
    return as_text_encoder(encoder).parts()


def clip_token_embeddings(clip: nn.Module) -> Tensor:
    """Return the token embedding table (V, D) of one CLIP encoder."""
    return clip.get_input_embeddings().weight  # type: ignore[operator]


def embedding_table(encoder: nn.Module) -> Tensor:
    """Return the token embedding table (V, D); the tables of two encoders are joined along D."""
    tables = list(map(clip_token_embeddings, encoder_parts(encoder).values()))
    return tables[0] if len(tables) == 1 else torch.cat(tables, -1)


def chunk_length(encoder: nn.Module) -> int:
    """Return how many tokens an encoder reads at once, start and end included: L, 77 for CLIP."""
    config: Any = next(iter(encoder_parts(encoder).values())).config
    return int(config.max_position_embeddings)


def embed(encoder: nn.Module, ids: Tensor) -> Tensor:
    """Return the token embeddings (B, n L, D) of ids (B, n L), as `encode` takes them."""
    rows = ids.reshape(-1, min(ids.shape[1], chunk_length(encoder)))  # each chunk is padded by itself
    return as_text_encoder(encoder).embed(rows).view(*ids.shape, -1)


def encode(
    encoder: nn.Module,
    ids: Tensor,
    embeddings: Tensor | None = None,
    at: slice | Tensor | None = None,
    add: bool = False,
) -> Tensor:
    """Encode a prompt to the hidden states that condition the denoiser.

    Args:
        encoder: a transformers CLIPTextModel, or Stable Diffusion XL's two as a DualTextEncoder. If its attribute
            `compute_dtype` is torch.bfloat16, it computes in bf16; its weights keep their dtype. Its attribute
            `clip_skip` is the number of layers to skip at the end, see `set_clip_skip`.
        ids: (B, L) token ids, which determine positions, the causal mask and the end of text; or (B, n L) in n chunks.
        embeddings: (B, k, D) token embeddings that replace those of `ids` at `at`.
        at: the k positions: a slice, or (B, k) if they differ between rows; no position twice in a row.
        add: add the embeddings to those of `ids` instead of replacing them.

    Returns:
        (B, L, D) hidden states after the final layer norm; for two encoders, see `sdxl_text_encoder`; for n chunks,
        see `join_chunks`.

    Raises ValueError when `at` has another number of positions than `embeddings` has tokens.
    """
    if ids.shape[1] > chunk_length(encoder):
        return _encode_chunks(encoder, ids, embeddings, at, add)
    # A new context for every call: the casts that autocast caches must not outlive an update of the weights.
    half = getattr(encoder, "compute_dtype", None) == torch.bfloat16
    compute = torch.autocast(ids.device.type, torch.bfloat16, enabled=half)

    def hidden_states() -> Tensor:
        with compute:
            output = _run_encoder(encoder, ids)
        return output.float() if half else output

    if embeddings is None:
        return hidden_states()

    def replace(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return _put_embeddings(output, embeddings, at, add)

    # A hook on the embedding table works in transformers 4 and 5 alike, whose forward methods differ.
    handle = encoder.get_input_embeddings().register_forward_hook(replace)  # type: ignore[operator]
    try:
        return hidden_states()
    finally:
        handle.remove()


def _run_encoder(encoder: nn.Module, ids: Tensor) -> Tensor:
    """Return the hidden states (B, L, D) of ids (B, L), without the last `clip_skip` layers, after the final norm."""
    skip = get_clip_skip(encoder)
    if not skip:
        return encoder(ids).last_hidden_state
    states = encoder(ids, output_hidden_states=True).hidden_states
    norm = next(m for name, m in encoder.named_modules() if name.endswith("final_layer_norm"))
    return norm(states[-1 - skip])


def get_clip_skip(encoder: nn.Module) -> int:
    """Return the number of layers that are skipped at the end of an encoder."""
    return int(getattr(encoder, "clip_skip", 0))


def set_clip_skip(encoder: nn.Module, clip_skip: int) -> None:
    """Skip the last layers of a CLIP-L, as diffusers' `clip_skip`: 1 is ComfyUI's CLIP Set Last Layer -2.

    The final layer norm is applied all the same. Copies of the encoder skip as many.
    Raises AdvUnlearnError for as many layers as the encoder has, and for Stable Diffusion XL.
    """
    parts = encoder_parts(encoder)
    if clip_skip and len(parts) > 1:
        raise AdvUnlearnError(f"clip_skip is {clip_skip}, but Stable Diffusion XL always skips one layer; set it to 0")
    layers: int = next(iter(parts.values())).config.num_hidden_layers  # type: ignore[union-attr, assignment]
    if not 0 <= clip_skip < layers:
        raise AdvUnlearnError(
            f"clip_skip is {clip_skip}, but this text encoder has {layers} layers; give at most {layers - 1}"
        )
    encoder.clip_skip = clip_skip  # type: ignore[assignment]


def trainable_copy(encoder: nn.Module, encoders: Encoders, device: torch.device) -> nn.Module:
    """Return a copy of an encoder on a device; of two encoders, one that does not train is shared with the original."""
    parts = encoder_parts(encoder)
    shared = {id(part): part for name, part in parts.items() if len(parts) > 1 and encoders not in ("both", name)}
    copied = copy.deepcopy(encoder, shared)
    move_modules(encoder_parts(copied).values(), device)
    return copied


def _put_embeddings(own: Tensor, embeddings: Tensor, at: slice | Tensor | None, add: bool) -> Tensor:
    """Return embeddings (B, L, D) with others (B, k, D) at, or added to, k positions; see `encode`."""
    positions = torch.arange(at.start, at.stop, device=own.device) if isinstance(at, slice) else at
    if positions is None or positions.shape[-1] != embeddings.shape[1]:
        raise ValueError(f"{embeddings.shape[1]} embeddings do not fit the positions {at}")
    index = positions.expand(embeddings.shape[:2])[..., None].expand_as(embeddings)
    scatter = own.scatter_add if add else own.scatter
    return scatter(1, index, embeddings.to(own.dtype))


def _encode_chunks(
    encoder: nn.Module, ids: Tensor, embeddings: Tensor | None, at: slice | Tensor | None, add: bool
) -> Tensor:
    """Encode prompts (B, n L) chunk by chunk, see `encode`."""
    rows = ids.unflatten(1, (-1, chunk_length(encoder)))  # (B, n, L)
    if embeddings is None:
        return join_chunks(encode(encoder, rows.flatten(0, 1)), rows)
    all_embeddings = _put_embeddings(embed(encoder, ids), embeddings, at, add)
    by_chunk = all_embeddings.reshape(*rows.shape, -1).flatten(0, 1)  # (B n, L, D)
    return join_chunks(encode(encoder, rows.flatten(0, 1), by_chunk, slice(0, rows.shape[2])), rows)


@torch.no_grad()
def encode_prompts(encoder: nn.Module, tokenizer: Tokenizer, prompts: Sequence[str], device: torch.device) -> Tensor:
    """Return the conditioning (B, L, D) of prompts. An encoder on another device is moved there for the moment."""
    ids = tokenize(tokenizer, prompts).to(device)
    with on_device(encoder_parts(encoder).values(), device):
        return torch.cat([encode(encoder, rows) for rows in ids.split(128)])


def trainable_parameters(
    encoder: nn.Module,
    trainable: Trainable = "layers",
    num_layers: int = 0,
    final_norm: FinalNorm = "auto",
    encoders: Encoders = "both",
) -> list[nn.Parameter]:
    """Choose the parameters to train.

    Args:
        encoder: a transformers CLIPTextModel, or a DualTextEncoder.
        trainable: whole layers, only their attention or feed-forward blocks, or all parameters with the embeddings.
        num_layers: train only the first N layers (0: all). Layers are compared as numbers: 1 is layer 0, not layer 10.
        final_norm: whether to train the final norm; auto: only together with whole layers, as published.
        encoders: of two encoders, those to train. Projections, and parameters without effect on the conditioning, are
            never chosen.

    Raises AdvUnlearnError when the encoder has fewer than `num_layers` layers.
    """
    norm_trains = trainable in ("layers", "all") if final_norm == "auto" else final_norm == "train"
    chosen = []
    layers = set()
    for name, parameter in as_text_encoder(encoder).conditioning_parameters(encoders):
        layer = re.search(r"\blayers\.(\d+)\.", name)
        if layer:
            layers.add(int(layer[1]))
        if "text_projection" in name or (layer and num_layers and int(layer[1]) >= num_layers):
            continue
        if norm_trains if "final_layer_norm" in name else re.search(TRAINABLE_PATTERNS[trainable], name):
            chosen.append(parameter)
    if num_layers > len(layers):
        raise AdvUnlearnError(
            f"num_layers is {num_layers}, but this text encoder has {len(layers)} layers; give at most that, or 0"
        )
    return chosen


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Freeze modules and put them in evaluation mode; restore every flag afterwards."""
    flags = [(p, p.requires_grad) for m in modules for p in m.parameters()]
    modes = [(child, child.training) for m in modules for child in m.modules()]
    try:
        for module in modules:
            module.requires_grad_(False).train(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for child, mode in modes:
            child.training = mode


@contextlib.contextmanager
def gradients_for(parameters: Sequence[nn.Parameter], enabled: bool) -> Iterator[None]:
    """Turn gradients of parameters on or off; restore every flag afterwards."""
    flags = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(enabled)
        yield
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)
