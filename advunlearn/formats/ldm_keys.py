"""The names of weights in the original Stable Diffusion 1.x and XL code, which single-file checkpoints have.

diffusers converts those names to its own; this module converts back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from .detect import TEXT_PREFIX, UNET_PREFIX
from .openclip import to_openclip

CLIP_L_PREFIX = "conditioner.embedders.0.transformer."  # SDXL's encoders
CLIP_G_PREFIX = "conditioner.embedders.1.model."
VAE_PREFIX = "first_stage_model."
# Scaling factors of the latents that every reader of such a checkpoint expects.
SD1_SCALING_FACTOR = 0.18215
SDXL_SCALING_FACTOR = 0.13025

_TEXT_MODEL = "cond_stage_model.transformer."
_UNET_OUTER_NAMES = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_MIDDLE_NAMES = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
_RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_REPLACEMENTS = (
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.", "mid.attn_1."),
    (".resnets.", ".block."),
    ("samplers.0.", "sample."),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)


def map_unet_keys(names: Iterable[str]) -> dict[str, str]:
    """Return the original name, without a prefix, of each weight of a diffusers UNet of the Stable Diffusion 1.x kind.

    Raises AdvUnlearnError for the first weight that the original layout has no name for.
    """
    names = list(names)
    resnets = [int(name.split(".")[3]) for name in names if name.startswith("down_blocks.0.resnets.")]
    # A level has one block more than layers: the downsampler on the way down, one more layer on the way up.
    stride = 2 + max(resnets, default=0)
    levels_with_attention = {int(n.split(".")[1]) for n in names if n.startswith("up_blocks.") and ".attentions." in n}
    keys = {}
    for name in names:
        try:
            keys[name] = _map_unet_key(name.split("."), stride, levels_with_attention)
        except (KeyError, ValueError, IndexError) as error:
            raise AdvUnlearnError(
                f"the UNet's weight {name!r} has no name in the original layout: only models of Stable Diffusion 1.x "
                "and XL can be written as single-file checkpoints; use the diffusers folder"
            ) from error
    return keys


def _map_unet_key(parts: list[str], stride: int, levels_with_attention: set[int]) -> str:
    for size in (1, 2):
        if outer := _UNET_OUTER_NAMES.get(".".join(parts[:size])):
            return ".".join([outer, *parts[size:]])
    if parts[0] == "mid_block":
        return ".".join([_UNET_MIDDLE_NAMES[".".join(parts[1:3])], *_map_block_parts(parts[1], parts[3:])])
    direction, level, kind, index = parts[0], int(parts[1]), parts[2], int(parts[3])
    rest = parts[4:]
    if kind == "downsamplers":
        return ".".join([f"input_blocks.{stride * (level + 1)}.0.op", *rest[1:]])
    if kind == "upsamplers":
        position = 1 + (level in levels_with_attention)
        return ".".join([f"output_blocks.{stride * (level + 1) - 1}.{position}.conv", *rest[1:]])
    # Block 0 on the way down is conv_in.
    block = {
        "down_blocks": f"input_blocks.{stride * level + 1 + index}",
        "up_blocks": f"output_blocks.{stride * level + index}",
    }
    position_in_block = {"resnets": "0", "attentions": "1"}[kind]
    return ".".join([block[direction], position_in_block, *_map_block_parts(kind, rest)])


def _map_block_parts(kind: str, parts: list[str]) -> list[str]:
    return [_RESNET_NAMES[parts[0]], *parts[1:]] if kind == "resnets" else parts


def map_vae_keys(names: Iterable[str]) -> dict[str, str]:
    """Return the original name, without a prefix, of each weight of a diffusers autoencoder.

    AutoencoderTiny gets TAESD's names, as ComfyUI reads them in a checkpoint; TAESD's decoder begins with a clamp.
    """
    names = list(names)
    levels = [int(name.split(".")[2]) for name in names if name.startswith("decoder.up_blocks.")]
    if levels:
        return {name: _map_vae_key(name, max(levels)) for name in names}
    return {name: _map_taesd_key(name) for name in names}


def _map_vae_key(name: str, last_level: int) -> str:
    # The original code counts the levels on the way up from the top.
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last_level - int(match[1])}", name)
    name = name.replace("down_blocks.", "down.")
    for diffusers, original in _VAE_REPLACEMENTS:
        name = name.replace(diffusers, original)
    return name


def _map_taesd_key(name: str) -> str:
    side, _, index, rest = name.split(".", 3)
    return f"taesd_{side}.{int(index) + (side == 'decoder')}.{rest}"


def build_checkpoint_state(
    unet: Mapping[str, Tensor], text: Mapping[str, Tensor], vae: Mapping[str, Tensor], vae_scale: float
) -> dict[str, Tensor]:
    """Return a whole model's weights as a Stable Diffusion 1.x checkpoint stores them. No value changes.

    Args:
        unet: state dict of a diffusers UNet.
        text: that of a CLIP text encoder, with or without `text_model.`.
        vae: that of a diffusers autoencoder: AutoencoderKL, or AutoencoderTiny, for which the checkpoint also stores
            the ratio of the usual scaling factor to its own.
        vae_scale: the autoencoder's scaling factor.

    Raises AdvUnlearnError for a UNet that the original code has no names for.
    """
    state = {UNET_PREFIX + key: unet[name] for name, key in map_unet_keys(unet).items()}
    for name, tensor in text.items():
        if not name.endswith("position_ids"):
            state[_TEXT_MODEL + TEXT_PREFIX + name.removeprefix(TEXT_PREFIX)] = tensor
    state |= _rename_vae(vae, SD1_SCALING_FACTOR / vae_scale)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def build_sdxl_checkpoint_state(
    unet: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    clip_l: Mapping[str, Tensor],
    clip_g: Mapping[str, Tensor],
    vae_scale: float,
) -> dict[str, Tensor]:
    """Return a whole model's weights as an SDXL checkpoint stores them, as `build_checkpoint_state` does.

    Both text encoders have `text_model.` keys, and CLIP-G its projection.
    """
    state = {UNET_PREFIX + key: unet[name] for name, key in map_unet_keys(unet).items()}
    state |= {CLIP_L_PREFIX + name: tensor for name, tensor in clip_l.items() if name.startswith(TEXT_PREFIX)}
    state |= {CLIP_G_PREFIX + name: tensor for name, tensor in to_openclip(clip_g).items()}
    state |= _rename_vae(vae, SDXL_SCALING_FACTOR / vae_scale)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _rename_vae(vae: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return an autoencoder's weights by their original names; `scale` is the one that a TAESD is stored with."""
    state = {}
    for name, key in map_vae_keys(vae).items():
        is_convolution = ".mid.attn_1." in key and vae[name].dim() == 2  # 1 x 1 there, a linear layer in diffusers
        state[VAE_PREFIX + key] = vae[name][:, :, None, None] if is_convolution else vae[name]
    if VAE_PREFIX + "taesd_encoder.0.weight" in state:
        state |= {VAE_PREFIX + "vae_scale": torch.tensor(scale), VAE_PREFIX + "vae_shift": torch.tensor(0.0)}
    return state
