"""A trained encoder's difference to its base as a LoRA file (arXiv 2106.09685), in kohya's key names."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from ..files import write_safetensors
from .text_encoders import TEXT_PREFIX

# Of CLIP-L, as Stable Diffusion 1.x has it alone; of SDXL's CLIP-L and CLIP-G.
LORA_TE = "lora_te_"
LORA_TE1 = "lora_te1_"
LORA_TE2 = "lora_te2_"


@dataclass(frozen=True)
class Lora:
    """A LoRA and what it leaves out."""

    tensors: dict[str, Tensor]  # kohya keys
    residual: float  # |difference - LoRA| / |difference|, Frobenius norm over all tensors; 0 is nothing left out


def factorize(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return up (out, r) and down (r, in) with the least squared error |difference - up @ down|."""
    u, s, v = torch.linalg.svd(difference.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def extract_lora(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], rank: int, start: str = LORA_TE) -> Lora:
    """Approximate `trained - base` in every linear layer; both have `text_model.` keys.

    `start` is what kohya's names begin with. Biases and norms have no place in a LoRA and count as residual, as does
    what exceeds the rank.
    Raises AdvUnlearnError for a rank below 1, or two encoders of different shapes.
    """
    if rank < 1:
        raise AdvUnlearnError(f"rank is {rank}; it must be at least 1")
    out: dict[str, Tensor] = {}
    left = total = 0.0
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
            key = start + name.removesuffix(".weight").replace(".", "_")
            out |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
            out[f"{key}.alpha"] = torch.tensor(float(len(down)))
            square = (difference - up @ down).square().sum().item()
        left += square
    return Lora({k: v.contiguous() for k, v in out.items()}, (left / total) ** 0.5 if total else 0.0)


def save_lora(path: str | pathlib.Path, made: Lora, metadata: Mapping[str, str] | None = None) -> pathlib.Path:
    """Write a LoRA file; the residual is in its metadata."""
    text = {"format": "pt", "advunlearn.residual": f"{made.residual:.6f}", **(metadata or {})}
    return write_safetensors(path, made.tensors, text)
