"""A model's weights under the names of the original Stable Diffusion 1.x code, which single-file checkpoints have.

diffusers has the way from those names to its own; this is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from .detect import UNET_PREFIX

TEXT = "cond_stage_model.transformer.text_model."
VAE_PREFIX = "first_stage_model."
SD1_SCALING_FACTOR = 0.18215  # of the latents that whatever reads such a checkpoint expects

UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_PARTS = (
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

    Raises AdvUnlearnError that names the first weight the original has no place for.
    """
    names = list(names)
    first = [int(n.split(".")[3]) for n in names if n.startswith("down_blocks.0.resnets.")]
    stride = 2 + max(first, default=0)  # a level has its layers and one more: what halves, or one more layer upwards
    attending = {int(n.split(".")[1]) for n in names if n.startswith("up_blocks.") and ".attentions." in n}
    keys = {}
    for name in names:
        try:
            keys[name] = _unet_key(name.split("."), stride, attending)
        except (KeyError, ValueError, IndexError) as error:
            raise AdvUnlearnError(
                f"the UNet's weight {name!r} has no name in the original layout: only Stable Diffusion 1.x models have "
                "single-file checkpoints here; use the diffusers folder"
            ) from error
    return keys


def _unet_key(parts: list[str], stride: int, attending: set[int]) -> str:
    for size in (1, 2):
        if ".".join(parts[:size]) in UNET_ENDS:
            return ".".join([UNET_ENDS[".".join(parts[:size])], *parts[size:]])
    if parts[0] == "mid_block":
        return ".".join([UNET_MIDDLE[".".join(parts[1:3])], *_inner(parts[1], parts[3:])])
    side, level, kind, index, rest = parts[0], int(parts[1]), parts[2], int(parts[3]), parts[4:]
    if kind == "downsamplers":
        return ".".join([f"input_blocks.{stride * (level + 1)}.0.op", *rest[1:]])
    if kind == "upsamplers":
        return ".".join([f"output_blocks.{stride * (level + 1) - 1}.{1 + (level in attending)}.conv", *rest[1:]])
    place = {"down_blocks": f"input_blocks.{stride * level + 1}", "up_blocks": f"output_blocks.{stride * level}"}[side]
    block, number = place.split(".")
    inside = {"resnets": "0", "attentions": "1"}[kind]
    return ".".join([block, str(int(number) + index), inside, *_inner(kind, rest)])


def _inner(kind: str, rest: list[str]) -> list[str]:
    return [RESNET[rest[0]], *rest[1:]] if kind == "resnets" else rest


def map_vae_keys(names: Iterable[str]) -> dict[str, str]:
    """Return the original name, without a prefix, of each weight of a diffusers autoencoder.

    AutoencoderTiny's are TAESD's, as ComfyUI reads them in a checkpoint; TAESD's decoder begins with a clamp.
    """
    names = list(names)
    levels = [int(n.split(".")[2]) for n in names if n.startswith("decoder.up_blocks.")]
    if not levels:
        parts = {n: n.split(".", 3) for n in names}
        return {n: f"taesd_{p}.{int(i) + (p == 'decoder')}.{rest}" for n, (p, _, i, rest) in parts.items()}

    def key(name: str) -> str:
        name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{max(levels) - int(m[1])}", name)  # counted from the top
        name = name.replace("down_blocks.", "down.")
        for ours, original in VAE_PARTS:
            name = name.replace(ours, original)
        return name

    return {name: key(name) for name in names}


def build_checkpoint_state(
    unet: Mapping[str, Tensor], text: Mapping[str, Tensor], vae: Mapping[str, Tensor], vae_scale: float
) -> dict[str, Tensor]:
    """Return a whole model's weights as a Stable Diffusion 1.x checkpoint holds them; nothing is rounded.

    Args:
        unet, vae: state dicts of a diffusers UNet and autoencoder (AutoencoderKL, or AutoencoderTiny, of which a
            checkpoint says by what its latents differ from the usual ones).
        text: a CLIP text encoder's, with or without `text_model.`.
        vae_scale: the autoencoder's scaling factor.

    Raises AdvUnlearnError for a UNet that the original code has no names for.
    """
    state = {UNET_PREFIX + key: unet[name] for name, key in map_unet_keys(unet).items()}
    state |= {TEXT + n.removeprefix("text_model."): v for n, v in text.items() if not n.endswith("position_ids")}
    for name, key in map_vae_keys(vae).items():
        one_by_one = ".mid.attn_1." in key and vae[name].dim() == 2  # a convolution there
        state[VAE_PREFIX + key] = vae[name][:, :, None, None] if one_by_one else vae[name]
    if VAE_PREFIX + "taesd_encoder.0.weight" in state:
        state[VAE_PREFIX + "vae_scale"], state[VAE_PREFIX + "vae_shift"] = (
            torch.tensor(SD1_SCALING_FACTOR / vae_scale),
            torch.tensor(0.0),
        )
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
