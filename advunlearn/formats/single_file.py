"""Stable Diffusion 1.x checkpoints in a single file: infer their configurations and convert their tensors, offline.

The configurations are those of SD 1.5 that ship here, changed where the file's shapes differ. The tensors are renamed
by the functions behind diffusers' own `from_single_file`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config.io import PREDICTION_TYPES
from ..errors import AdvUnlearnError
from .containers import PICKLE_SUFFIXES
from .detect import SD1, UNET_PREFIX, detect_checkpoint_kind, get_size
from .encoder_config import SHAPES_FOLDER, compute_encoder_shapes
from .ldm_keys import SD1_SCALING_FACTOR, VAE_PREFIX
from .text_encoders import ConfigDict, extract_encoder, find_encoder_prefixes, require_encoder_shapes
from .weights import Weights, describe_mismatch, get_shapes

CHECKPOINT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
TAESD_PREFIX = VAE_PREFIX + "taesd_"
# A file states that it predicts v by a key `v_pred` (ComfyUI), or by these metadata keys (the model specification).
PREDICTION_KEYS = ("modelspec.predict_key", "modelspec.prediction_type")
V_PREDICTION_NAMES = ("v", "v_prediction", "v-prediction", "velocity")


def load_sd15_config(component: str) -> ConfigDict:
    """Return the configuration of a component of Stable Diffusion 1.5: 'unet', 'vae', 'text_encoder', 'scheduler'."""
    (file,) = (SHAPES_FOLDER / "sd15" / component).glob("*.json")
    return json.loads(file.read_text(encoding="utf-8"))


def require_sd1(weights: Weights) -> None:
    """Raise AdvUnlearnError that says what a file is, unless it is a complete SD 1.x text-to-image checkpoint."""
    kind = detect_checkpoint_kind(weights.names, weights.shape)
    has_encoder = bool(find_encoder_prefixes(weights))
    if kind == SD1 and not has_encoder:
        kind += " without its text encoder"
    elif kind == SD1 and not any(name.startswith(VAE_PREFIX) for name in weights.names):
        kind += " without its autoencoder"
    elif not kind and has_encoder:
        kind = "a CLIP text encoder alone"
    if kind != SD1:
        found = kind or f"no Stable Diffusion checkpoint; its first tensor is {min(weights.names, default='nothing')!r}"
        hint = ": use the text-to-image model it was made from" if kind.startswith(SD1 + " for") else ""
        raise AdvUnlearnError(
            f"{weights.source} is {found}; --model takes complete text-to-image checkpoints of Stable Diffusion 1.x, "
            f"and diffusers folders of 1.x and XL{hint}"
        )


def detect_prediction_type(weights: Weights, choice: str = "auto") -> str:
    """Return what a checkpoint predicts: `choice`, or for "auto" what the file states, otherwise epsilon.

    Raises AdvUnlearnError for an unknown choice.
    """
    if choice not in PREDICTION_TYPES:
        raise AdvUnlearnError(f"prediction type {choice!r} is not known; give one of {', '.join(PREDICTION_TYPES)}")
    if choice != "auto":
        return choice
    states_v = any(weights.metadata.get(key) in V_PREDICTION_NAMES for key in PREDICTION_KEYS)
    return "v_prediction" if states_v or "v_pred" in weights.names else "epsilon"


def infer_unet_config(weights: Weights) -> ConfigDict:
    """Return a UNet's diffusers configuration: SD 1.5's with the widths and blocks of the file."""
    config = load_sd15_config("unet")
    levels = _read_unet_levels(weights)
    if not all(levels):
        return config  # an unknown layout: the check of the tensors will name what is missing
    attention = ["CrossAttn" if level[0][1] else "" for level in levels]
    height, width = read_resolution(weights)
    return config | {
        "block_out_channels": [level[0][0] for level in levels],
        "layers_per_block": len(levels[0]),
        "down_block_types": [f"{kind}DownBlock2D" for kind in attention],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(attention)],
        "sample_size": height // 8 if height == width else [height // 8, width // 8],
    }


def _read_unet_levels(weights: Weights) -> list[list[tuple[int, bool]]]:
    """Return the residual blocks of each level on the way down: channels, and whether attention follows."""
    names = set(weights.names)
    levels: list[list[tuple[int, bool]]] = [[]]
    block = 1
    while True:
        prefix = f"{UNET_PREFIX}input_blocks.{block}."
        if prefix + "0.op.weight" in names:
            levels.append([])
        elif prefix + "0.in_layers.0.weight" not in names:
            return levels
        elif prefix + "0.out_layers.3.weight" in names:
            channels = get_size(weights.shape(prefix + "0.out_layers.3.weight"))
            levels[-1].append((channels, prefix + "1.norm.weight" in names))
        block += 1


def read_resolution(weights: Weights) -> tuple[int, int]:
    """Return the height and width in pixels that a file states it was trained at, or 512 x 512."""
    stated = re.fullmatch(r"(\d{1,5})x(\d{1,5})", weights.metadata.get("modelspec.resolution", ""))
    return (max(8, int(stated[2])), max(8, int(stated[1]))) if stated else (512, 512)


def infer_vae_config(weights: Weights) -> ConfigDict:
    """Return the configuration of the autoencoder in a file: AutoencoderKL's, or AutoencoderTiny's for a TAESD.

    Raises AdvUnlearnError for a TAESD that shifts its latents, as those of other models do.
    """
    names = set(weights.names)
    if any(name.startswith(TAESD_PREFIX) for name in names):
        return _infer_taesd_config(weights)
    config = load_sd15_config("vae")
    channels: list[int] = []
    while (name := f"{VAE_PREFIX}encoder.down.{len(channels)}.block.0.conv1.weight") in names:
        channels.append(get_size(weights.shape(name)))
    if not channels:
        return config
    first_level = rf"{re.escape(VAE_PREFIX)}encoder\.down\.0\.block\.\d+\.conv1\.weight"
    return config | {
        "block_out_channels": channels,
        "layers_per_block": sum(re.fullmatch(first_level, name) is not None for name in names),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
    }


def _infer_taesd_config(weights: Weights) -> ConfigDict:
    def read_number(name: str, default: float) -> float:
        if VAE_PREFIX + name not in weights.names:
            return default
        value = weights.read(VAE_PREFIX + name)
        if value.numel() != 1:
            raise AdvUnlearnError(f"{weights.source}: {name!r} is not one number; the TAESD in it is damaged")
        return float(value)

    scale = read_number("vae_scale", 1.0)
    first = TAESD_PREFIX + "decoder.1.weight"
    if read_number("vae_shift", 0.0) or not scale or first not in weights.names:
        raise AdvUnlearnError(f"{weights.source}: the TAESD in it is not one of Stable Diffusion 1.x")
    channels = [get_size(weights.shape(first))] * 4
    return {
        "_class_name": "AutoencoderTiny",
        "scaling_factor": SD1_SCALING_FACTOR / scale,
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels,
    }


def infer_configs(weights: Weights, prediction: str = "auto") -> dict[str, ConfigDict]:
    """Return the configurations of a checkpoint's 'unet', 'vae', 'text_encoder' and 'scheduler'.

    Args:
        weights: the file.
        prediction: 'epsilon' or 'v_prediction', or 'auto' for what the file states.

    Raises AdvUnlearnError for a file that is not a text-to-image checkpoint of Stable Diffusion 1.x.
    """
    require_sd1(weights)
    schedule = {
        "prediction_type": detect_prediction_type(weights, prediction),
        "rescale_betas_zero_snr": "ztsnr" in weights.names,
    }
    return {
        "unet": infer_unet_config(weights),
        "vae": infer_vae_config(weights),
        "text_encoder": load_sd15_config("text_encoder"),
        "scheduler": load_sd15_config("scheduler") | schedule,
    }


def read_states(weights: Weights, configs: Mapping[str, ConfigDict]) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of a checkpoint's 'unet', 'vae' and 'text_encoder', for diffusers and transformers.

    Raises AdvUnlearnError for the first tensor that is missing, unknown or mis-shaped.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    def read(prefix: str) -> dict[str, Tensor]:
        return {name: weights.read(name) for name in weights.names if name.startswith(prefix)}

    if configs["vae"]["_class_name"] == "AutoencoderTiny":
        vae = _rename_taesd(read(VAE_PREFIX))
    else:
        source = f"{weights.source}: its autoencoder"
        vae = _convert(convert_ldm_vae_checkpoint, read(VAE_PREFIX), configs["vae"], source)
    unet = _convert(convert_ldm_unet_checkpoint, read(UNET_PREFIX), configs["unet"], f"{weights.source}: its UNet")
    states = {"unet": unet, "vae": vae, "text_encoder": extract_encoder(weights)}
    require_state_shapes(states, configs, weights.source)
    return states


def _convert(
    converter: Callable[..., dict[str, Tensor]], state: dict[str, Tensor], config: ConfigDict, source: str
) -> dict[str, Tensor]:
    try:
        return converter(state, dict(config))
    except Exception as error:  # the converter raises anything for a tensor that is missing or mis-shaped
        raise AdvUnlearnError(f"{source} does not have the layout of Stable Diffusion 1.x ({error})") from error


def _rename_taesd(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a TAESD's tensors under AutoencoderTiny's names, which do not count the clamp before TAESD's decoder."""
    renamed = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"(encoder|decoder)\.(\d+)\.(.+)", name.removeprefix(TAESD_PREFIX)):
            side, index, rest = match.groups()
            renamed[f"{side}.layers.{int(index) - (side == 'decoder')}.{rest}"] = tensor
    return renamed


def build_meta_modules(configs: Mapping[str, ConfigDict]) -> tuple[nn.Module, nn.Module]:
    """Return the UNet and the autoencoder of `configs` on the meta device, which has shapes without values."""
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    unet_class: Any = UNet2DConditionModel
    vae_class: Any = AutoencoderTiny if "Tiny" in configs["vae"]["_class_name"] else AutoencoderKL
    with torch.device("meta"):
        return unet_class.from_config(configs["unet"]), vae_class.from_config(configs["vae"])


def require_state_shapes(
    states: Mapping[str, Mapping[str, Tensor]], configs: Mapping[str, ConfigDict], source: str
) -> None:
    """Raise AdvUnlearnError for the first tensor of a checkpoint that is missing, unknown or mis-shaped."""
    unet, vae = build_meta_modules(configs)
    for component, title, module in (("unet", "its UNet", unet), ("vae", "its autoencoder", vae)):
        if wrong := describe_mismatch(get_shapes(module.state_dict()), get_shapes(states[component])):
            raise AdvUnlearnError(
                f"{source}: {title} {wrong}; it is not of Stable Diffusion 1.x's architecture, or incomplete: download "
                "it again"
            )
    require_encoder_shapes(compute_encoder_shapes(configs["text_encoder"]), states["text_encoder"], source)
