"""The diffusers configuration of a UNet in the original layout, from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files import JsonDict
from .detect import UNET_PREFIX, get_size
from .weights import TensorShapes, Weights

SDXL_HEAD_CHANNELS = 64  # in each attention head of SDXL's UNets, whatever their width


@dataclass(frozen=True)
class Level:
    """The residual blocks of one resolution: their channels, and the transformer layers behind each of them."""

    channels: int
    down: list[int]
    up: list[int]


def infer_unet_config(weights: Weights, base: JsonDict) -> JsonDict:
    """Return a UNet's configuration: `base`, that of its family, with the widths and blocks of the file.

    For an unknown layout it is `base`: the comparison of the shapes then names what is missing.
    """
    levels = read_levels(weights)
    if not levels or not all(level.down for level in levels):
        return base
    config = base | {
        "block_out_channels": [level.channels for level in levels],
        "layers_per_block": len(levels[0].down),
        "down_block_types": [_name_block(level.down, "Down") for level in levels],
        "up_block_types": [_name_block(level.up, "Up") for level in reversed(levels)],
    }
    if base.get("addition_embed_type") == "text_time":
        config |= _infer_sdxl_values(weights, levels)
    return config


def _name_block(depths: Iterable[int], direction: str) -> str:
    return f"CrossAttn{direction}Block2D" if any(depths) else f"{direction}Block2D"


def _infer_sdxl_values(weights: Weights, levels: Sequence[Level]) -> JsonDict:
    """Return the part of an SDXL UNet's configuration that differs among SDXL, SSD-1B, Segmind Vega and KOALA."""
    middle = f"{UNET_PREFIX}middle_block."
    depth = count_transformer_layers(weights, middle + "1.")
    values: JsonDict = {"attention_head_dim": [max(1, level.channels // SDXL_HEAD_CHANNELS) for level in levels]}
    if not depth:
        has_middle = middle + "0.in_layers.0.weight" in weights.names
        values["mid_block_type"] = "UNetMidBlock2D" if has_middle else None
    if label := _shape(weights, UNET_PREFIX + "label_emb.0.0.weight"):
        values["projection_class_embeddings_input_dim"] = get_size(label, 1)
    # A level without attention has the depth 1 in diffusers' configurations, where it means nothing.
    depths = [{depth or 1 for depth in level.down + level.up} for level in levels]
    if all(len(each) == 1 for each in depths) and depth in (0, *depths[-1]):
        return values | {"transformer_layers_per_block": [each.pop() for each in depths]}
    return values | {
        "transformer_layers_per_block": [level.down for level in levels],
        "reverse_transformer_layers_per_block": [level.up for level in reversed(levels)],
    }


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    return weights.shape(name) if name in weights.names else ()


def count_transformer_layers(weights: Weights, prefix: str) -> int:
    """Return the number of transformer layers of the attention under a prefix; 0 if there is none."""
    pattern = re.escape(prefix) + r"transformer_blocks\.(\d{1,4})\."
    return 1 + max((int(match[1]) for name in weights.names if (match := re.match(pattern, name))), default=-1)


def read_levels(weights: Weights) -> list[Level]:
    """Return the levels of a UNet, the highest resolution first; [] for another layout."""
    down: list[list[tuple[int, int]]] = [[]]  # channels and depth of each residual block
    names = set(weights.names)
    block = 1
    while True:
        prefix = f"{UNET_PREFIX}input_blocks.{block}."
        if prefix + "0.op.weight" in names:
            down.append([])
        elif prefix + "0.in_layers.0.weight" not in names:
            break
        else:
            channels = get_size(_shape(weights, prefix + "0.out_layers.3.weight"))
            down[-1].append((channels, count_transformer_layers(weights, prefix + "1.")))
        block += 1
    if not all(down):
        return []
    up = (count_transformer_layers(weights, f"{UNET_PREFIX}output_blocks.{i}.1.") for i in range(block))
    depths_up = [[next(up) for _ in range(len(level) + 1)] for level in reversed(down)][::-1]
    return [
        Level(level[0][0], [depth for _, depth in level], depths) for level, depths in zip(down, depths_up, strict=True)
    ]


def fill_empty_attentions(state: Mapping[str, Tensor], expected: TensorShapes) -> dict[str, Tensor]:
    """Return a UNet's tensors, with zeros for the attentions without layers that diffusers has and the file has not.

    If some blocks of a level have attention, diffusers' blocks have it all. With zero weights it returns its input.
    """
    stored = {_get_attention(name) for name in state}
    lost = {name: shape for name, shape in expected.items() if _get_attention(name) not in stored}
    with_layers = {_get_attention(name) for name in lost if ".transformer_blocks." in name}
    dtype = next(iter(state.values())).dtype if state else torch.float32
    empty = {
        name: torch.zeros(shape, dtype=dtype)
        for name, shape in lost.items()
        if _get_attention(name) not in {"", *with_layers}
    }
    return {**state, **empty}


def _get_attention(name: str) -> str:
    """Return the attention that a tensor is of, such as 'down_blocks.0.attentions.1'; "" for other tensors."""
    match = re.match(r".*?\.attentions\.\d+(?=\.)", name)
    return match[0] if match else ""
