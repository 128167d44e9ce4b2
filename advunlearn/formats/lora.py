"""The difference of a trained encoder to its base as a LoRA file (arXiv 2106.09685), with kohya's key names."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from .detect import TEXT_PREFIX
from .tensors import write_safetensors

# kohya's prefixes: of the only text encoder (Stable Diffusion 1.x), of SDXL's CLIP-L, and of SDXL's CLIP-G.
LORA_TE = "lora_te_"
LORA_TE1 = "lora_te1_"
LORA_TE2 = "lora_te2_"


@dataclass(frozen=True)
class Lora:
    """A LoRA and its approximation error."""

    tensors: dict[str, Tensor]  # by kohya's keys
    residual: float  # |difference - LoRA| / |difference|, Frobenius norm over all tensors


def factorize(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return up (out, r) and down (r, in) with the least squared error |difference - up @ down|."""
    u, s, v = torch.linalg.svd(difference.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def extract_lora(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], rank: int, prefix: str = LORA_TE) -> Lora:
    """Approximate `trained - base` by matrices of rank `rank` in every linear layer.

    Args:
        base, trained: the encoders' tensors under `text_model.` keys.
        rank: the rank, at least 1.
        prefix: the start of kohya's key names.

    Embeddings, biases and norms, which a LoRA does not have, and what exceeds the rank count as residual.
    Raises AdvUnlearnError for a rank below 1, or two encoders of different shapes.
    """
    if rank < 1:
        raise AdvUnlearnError(f"rank is {rank}; it must be at least 1")
    tensors: dict[str, Tensor] = {}
    residual = 0.0
    total = 0.0
    for name, old in base.items():
        if name not in trained or trained[name].shape != old.shape:
            raise AdvUnlearnError(
                f"{name!r} is not in both encoders in the same shape; give the base it was trained from"
            )
        difference = trained[name].float() - old.float()
        square = difference.square().sum().item()
        total += square
        if square and name.startswith(TEXT_PREFIX + "encoder.layers.") and old.dim() == 2:
            up, down = factorize(difference, rank)
            key = prefix + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{key}.lora_up.weight"] = up.contiguous()
            tensors[f"{key}.lora_down.weight"] = down.contiguous()
            tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))
            square = (difference - up @ down).square().sum().item()
        residual += square
    return Lora(tensors, (residual / total) ** 0.5 if total else 0.0)


def save_lora(path: str | pathlib.Path, lora: Lora, metadata: Mapping[str, str] | None = None) -> pathlib.Path:
    """Write a LoRA file, with the residual in its metadata."""
    text = {"format": "pt", "advunlearn.residual": f"{lora.residual:.6f}", **(metadata or {})}
    return write_safetensors(path, lora.tensors, text)
