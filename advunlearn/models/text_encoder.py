"""CLIP's text encoder: encode from ids or from embeddings, choose what trains."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.training import Encoders, FinalNorm, Trainable
from ..errors import AdvUnlearnError
from .sdxl_text_encoder import DualTextEncoder


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Return token ids (B, L), padded and cut to the tokenizer's full length (77 for CLIP), as every host does."""
    length = tokenizer.model_max_length
    batch = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return batch.input_ids


def embedding_table(encoder: nn.Module) -> Tensor:
    """Return the token embedding table (V, D)."""
    if isinstance(encoder, DualTextEncoder):
        return encoder.embedding_table()
    return encoder.get_input_embeddings().weight  # type: ignore[operator]


def embed(encoder: nn.Module, ids: Tensor) -> Tensor:
    """Return the token embeddings (B, L, D) of ids (B, L), as `encode` takes them."""
    if isinstance(encoder, DualTextEncoder):
        return encoder.embed(ids)
    return F.embedding(ids, embedding_table(encoder))


def encode(
    encoder: nn.Module,
    ids: Tensor,
    embeddings: Tensor | None = None,
    at: slice | Tensor | None = None,
    add: bool = False,
) -> Tensor:
    """Encode a prompt to the hidden states that condition the denoiser.

    Args:
        encoder: a transformers CLIPTextModel, or Stable Diffusion XL's two as a DualTextEncoder. Where it has an
            attribute `compute_dtype` of torch.bfloat16, its weights stay as they are and its arithmetic is done in
            bf16.
        ids: (B, L) token ids; positions, the causal mask and the end of text follow from them.
        embeddings: (B, k, D) token embeddings that replace those of `ids` at `at`.
        at: the k places: a slice, or (B, k) where they differ from row to row; none twice in a row.
        add: the embeddings are added to those of `ids` and do not replace them.

    Returns:
        (B, L, D) last hidden states after the final layer norm; of two encoders see `dual_encoder`.
    """
    # Entered anew in every call: the casts that autocast caches must not outlive a step of the weights.
    half = getattr(encoder, "compute_dtype", None) == torch.bfloat16
    compute = torch.autocast(ids.device.type, torch.bfloat16, enabled=half)

    def hidden_states() -> Tensor:
        with compute:
            output = encoder(ids).last_hidden_state
        return output.float() if half else output

    if embeddings is None:
        return hidden_states()
    places = torch.arange(at.start, at.stop, device=ids.device) if isinstance(at, slice) else at
    if places is None or places.shape[-1] != embeddings.shape[1]:
        raise ValueError(f"{embeddings.shape[1]} embeddings do not fit the positions {at}")
    index = places.expand(embeddings.shape[:2])[..., None].expand_as(embeddings)

    def replace(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        put = output.scatter_add if add else output.scatter
        return put(1, index, embeddings.to(output.dtype))

    # A hook on the embedding table works alike in transformers 4 and 5, whose forward methods differ inside.
    handle = encoder.get_input_embeddings().register_forward_hook(replace)  # type: ignore[operator]
    try:
        return hidden_states()
    finally:
        handle.remove()


@torch.no_grad()
def encode_prompts(encoder: nn.Module, tokenizer: Any, prompts: Sequence[str], device: torch.device) -> Tensor:
    """Return the conditioning (B, L, D) of prompts."""
    ids = tokenize(tokenizer, prompts).to(device)
    return torch.cat([encode(encoder, part) for part in ids.split(128)])


PARTS = {"layers": r"\blayers\.", "attention": r"\bself_attn\.", "mlp": r"\bmlp\.", "all": r""}


def trainable_parameters(
    encoder: nn.Module,
    what: Trainable = "layers",
    first: int = 0,
    final_norm: FinalNorm = "auto",
    which: Encoders = "both",
) -> list[nn.Parameter]:
    """Return the parameters that train.

    Args:
        encoder: a transformers CLIPTextModel, or a DualTextEncoder.
        what: the layers; their attention or their feed-forward blocks; or all, the embeddings included.
        first: of the layers the first so many only, counted as numbers: 1 is layer 0, and never layer 10; 0 is all.
        final_norm: whether the final norm trains; auto: with whole layers it does, as published.
        which: of two encoders, those that train. Never trained are projections, and what nothing depends on.

    Raises AdvUnlearnError when the encoder has fewer layers.
    """
    norm = what in ("layers", "all") if final_norm == "auto" else final_norm == "train"
    chosen, numbers = [], set()
    dual = isinstance(encoder, DualTextEncoder)
    for name, parameter in encoder.reaching(which) if dual else encoder.named_parameters():  # type: ignore[operator]
        layer = re.search(r"\blayers\.(\d+)\.", name)
        numbers |= {int(layer[1])} if layer else set()
        if layer and first and int(layer[1]) >= first:
            continue
        if "text_projection" in name:
            continue
        if norm if "final_layer_norm" in name else re.search(PARTS[what], name):
            chosen.append(parameter)
    if first > len(numbers):
        raise AdvUnlearnError(f"layers is {first}, but this text encoder has {len(numbers)}; give at most that, or 0")
    return chosen


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Freeze modules and put them in evaluation mode; afterwards every flag is as it was."""
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
    """Turn gradients of some parameters on or off; afterwards every flag is as it was."""
    flags = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(enabled)
        yield
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)
