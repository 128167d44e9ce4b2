"""Stable Diffusion 1.x and XL in a single file: infer their configurations and convert their tensors, offline.

The configurations are those of SD 1.5 and SDXL that ship here, changed where the file's shapes differ. The tensors are
renamed by the functions behind diffusers' own `from_single_file`.
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
from .detect import UNET_PREFIX, get_size
from .encoder_config import SHAPES_FOLDER, compute_encoder_shapes
from .ldm_keys import SD1_SCALING_FACTOR, VAE_PREFIX
from .sdxl_encoders import extract_sdxl_encoder
from .supported import FAMILY_TITLES, PREDICTION_KEYS, V_PREDICTION_NAMES, require_text_to_image
from .text_encoders import ConfigDict, extract_encoder, require_encoder_shapes
from .unet_layout import fill_empty_attentions, infer_unet_config
from .weights import Weights, describe_mismatch, get_shapes

CHECKPOINT_SUFFIXES = (".safetensors", ".sft", *PICKLE_SUFFIXES)
TAESD_PREFIX = VAE_PREFIX + "taesd_"
SECOND_TEXT_ENCODER = "text_encoder_2"  # SDXL's CLIP-G, by its folder in diffusers


def load_config(family: str, component: str) -> ConfigDict:
    """Return the shipped configuration of a component ('unet', 'vae', 'scheduler' ...) of a family (`FAMILIES`)."""
    (file,) = (SHAPES_FOLDER / family / component).glob("*.json")
    return json.loads(file.read_text(encoding="utf-8"))


def load_sd15_config(component: str) -> ConfigDict:
    """Return the configuration of a component of Stable Diffusion 1.5: 'unet', 'vae', 'text_encoder', 'scheduler'."""
    return load_config("sd15", component)


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


def read_sample_size(weights: Weights) -> int | list[int] | None:
    """Return the latents' size, a number or [height, width], of the resolution that a file states; None without one."""
    stated = re.fullmatch(r"(\d{1,5})x(\d{1,5})", weights.metadata.get("modelspec.resolution", ""))
    if not stated:
        return None
    width, height = (max(8, int(side)) // 8 for side in stated.groups())
    return height if height == width else [height, width]


def infer_vae_config(weights: Weights, base: ConfigDict) -> ConfigDict:
    """Return the configuration of the autoencoder in a file: AutoencoderKL's, or AutoencoderTiny's for a TAESD.

    `base` is the configuration of the family's AutoencoderKL.
    Raises AdvUnlearnError for a TAESD that shifts its latents, as those of other models do.
    """
    names = set(weights.names)
    if any(name.startswith(TAESD_PREFIX) for name in names):
        return _infer_taesd_config(weights, base.get("scaling_factor", SD1_SCALING_FACTOR))
    channels: list[int] = []
    while (name := f"{VAE_PREFIX}encoder.down.{len(channels)}.block.0.conv1.weight") in names:
        channels.append(get_size(weights.shape(name)))
    if not channels:
        return base
    first_level = rf"{re.escape(VAE_PREFIX)}encoder\.down\.0\.block\.\d+\.conv1\.weight"
    return base | {
        "block_out_channels": channels,
        "layers_per_block": sum(re.fullmatch(first_level, name) is not None for name in names),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
    }


def _infer_taesd_config(weights: Weights, scaling_factor: float) -> ConfigDict:
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
        raise AdvUnlearnError(f"{weights.source}: the TAESD in it is not one of Stable Diffusion 1.x or XL")
    channels = [get_size(weights.shape(first))] * 4
    return {
        "_class_name": "AutoencoderTiny",
        "scaling_factor": scaling_factor / scale,
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels,
    }


def infer_configs(weights: Weights, prediction: str = "auto") -> dict[str, ConfigDict]:
    """Return the configurations of a checkpoint's parts, by the names of their folders in diffusers.

    Args:
        weights: the file.
        prediction: 'epsilon' or 'v_prediction', or 'auto' for what the file states.

    Raises AdvUnlearnError for a file that is not a text-to-image checkpoint of Stable Diffusion 1.x or XL.
    """
    family = require_text_to_image(weights)
    schedule = {
        "prediction_type": detect_prediction_type(weights, prediction),
        "rescale_betas_zero_snr": "ztsnr" in weights.names,
    }
    size = read_sample_size(weights)
    configs = {
        "unet": infer_unet_config(weights, load_config(family, "unet")) | ({"sample_size": size} if size else {}),
        "vae": infer_vae_config(weights, load_config(family, "vae")),
        "text_encoder": load_config(family, "text_encoder"),
        "scheduler": load_config(family, "scheduler") | schedule,
    }
    return configs | ({SECOND_TEXT_ENCODER: load_config(family, SECOND_TEXT_ENCODER)} if family == "sdxl" else {})


def read_states(weights: Weights, configs: Mapping[str, ConfigDict]) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of a checkpoint's parts, for diffusers and transformers, by the names of `configs`.

    Raises AdvUnlearnError for the first tensor that is missing, unknown or mis-shaped.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    def read(prefix: str) -> dict[str, Tensor]:
        return {name: weights.read(name) for name in weights.names if name.startswith(prefix)}

    source = weights.source
    if configs["vae"]["_class_name"] == "AutoencoderTiny":
        vae = _rename_taesd(read(VAE_PREFIX))
    else:
        vae = _convert(convert_ldm_vae_checkpoint, read(VAE_PREFIX), configs["vae"], f"{source}: its autoencoder")
    unet = _convert(convert_ldm_unet_checkpoint, read(UNET_PREFIX), configs["unet"], f"{source}: its UNet")
    states = {"unet": unet, "vae": vae, "text_encoder": extract_encoder(weights)}
    if SECOND_TEXT_ENCODER in configs:
        states[SECOND_TEXT_ENCODER] = extract_sdxl_encoder(weights, "clip_g")
    return require_state_shapes(states, configs, source)


def _convert(
    converter: Callable[..., dict[str, Tensor]], state: dict[str, Tensor], config: ConfigDict, source: str
) -> dict[str, Tensor]:
    try:
        return converter(state, dict(config))
    except Exception as error:  # the converter raises anything for a tensor that is missing or mis-shaped
        raise AdvUnlearnError(f"{source} does not have the layout of Stable Diffusion ({error})") from error


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
    states: Mapping[str, dict[str, Tensor]], configs: Mapping[str, ConfigDict], source: str
) -> dict[str, dict[str, Tensor]]:
    """Return a checkpoint's tensors, with zeros for attentions that only diffusers' classes have.

    Raises AdvUnlearnError for the first tensor that is missing, unknown or mis-shaped.
    """
    unet, vae = (get_shapes(module.state_dict()) for module in build_meta_modules(configs))
    complete = {**states, "unet": fill_empty_attentions(states["unet"], unet)}
    for component, title, expected in (("unet", "its UNet", unet), ("vae", "its autoencoder", vae)):
        if wrong := describe_mismatch(expected, get_shapes(complete[component])):
            raise AdvUnlearnError(
                f"{source}: {title} {wrong}; it is not of {_get_title(configs['unet'])}'s architecture, or incomplete: "
                "download it again"
            )
    for part in ("text_encoder", SECOND_TEXT_ENCODER):
        if part in states:
            require_encoder_shapes(compute_encoder_shapes(configs[part]), states[part], source)
    return complete


def _get_title(unet_config: Mapping[str, object]) -> str:
    return FAMILY_TITLES["sdxl" if unet_config.get("addition_embed_type") == "text_time" else "sd15"]
