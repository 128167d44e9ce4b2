"""Stable Diffusion 1.x's own names of diffusers' tensors: what a single-file checkpoint looks like."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from advunlearn.formats.openclip import to_openclip

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
FIXED = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "conv_out": "out.2",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
VAE = [
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("group_norm", "norm"),
    (r"\bto_(q|k|v)\b", r"\1"),
    (r"to_out\.0", "proj_out"),
]


def _inside(kind: str, rest: list[str]) -> str:
    return ".".join(["0", RESNET[rest[0]], *rest[1:]] if kind == "resnets" else ["1", *rest])


def unet_name(name: str, names: Iterable[str], layers: int) -> str:
    """Return the original name of a UNet's tensor; `layers` are the residual blocks of a level going down."""
    for start, new in FIXED.items():
        if name.startswith(start + "."):
            return new + name[len(start) :]
    parts = name.split(".")
    if parts[0] == "mid_block":
        place = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[".".join(parts[1:3])]
        return f"middle_block.{place}." + _inside(parts[1], parts[3:])[2:]
    level, kind, index, rest = int(parts[1]), parts[2], int(parts[3]), parts[4:]
    if parts[0] == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op." + ".".join(rest[1:])
        return f"input_blocks.{level * (layers + 1) + index + 1}." + _inside(kind, rest)
    if kind == "upsamplers":
        place = 2 if any(n.startswith(f"up_blocks.{level}.attentions.") for n in names) else 1
        return f"output_blocks.{level * (layers + 1) + layers}.{place}.conv." + ".".join(rest[1:])
    return f"output_blocks.{level * (layers + 1) + index}." + _inside(kind, rest)


def vae_name(name: str, levels: int) -> str:
    """Return the original name of an AutoencoderKL's tensor."""
    for pattern, new in VAE:
        name = re.sub(pattern, new, name)
    return re.sub(r"\bup\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", name)


def checkpoint(
    unet: Mapping[str, Tensor], layers: int, vae: Mapping[str, Tensor], levels: int, text: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a whole checkpoint; `text` has `text_model.` keys."""
    state = {"model.diffusion_model." + unet_name(k, unet, layers): v for k, v in unet.items()}
    for name, tensor in vae.items():
        square = ".attentions." in name and tensor.dim() == 2  # a convolution of one pixel there
        state["first_stage_model." + vae_name(name, levels)] = tensor[:, :, None, None] if square else tensor
    return state | {"cond_stage_model.transformer." + k: v for k, v in text.items()}


def sdxl_checkpoint(
    unet: Mapping[str, Tensor],
    layers: int,
    vae: Mapping[str, Tensor],
    levels: int,
    text: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return a whole SDXL checkpoint; both text encoders have `text_model.` keys, the second one its projection."""
    state = checkpoint(unet, layers, vae, levels, {})
    state |= {"conditioner.embedders.0.transformer." + k: v for k, v in text.items()}
    return state | {"conditioner.embedders.1.model." + k: v for k, v in to_openclip(second).items()}
