"""Single-file checkpoints of Stable Diffusion 1.x, taken apart without asking a hub.

The configuration is the shipped one of SD 1.5, changed where the file's own shapes say so; the names are turned into
diffusers' by its own `from_single_file` functions.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config.io import PREDICTION_TYPES
from ..errors import AdvUnlearnError
from .detect import SD1, UNET_PREFIX, detect_checkpoint_kind
from .ldm_keys import SD1_SCALING_FACTOR, VAE_PREFIX
from .text_encoders import (
    compute_encoder_shapes,
    extract_encoder,
    find_encoder_prefixes,
    get_shapes,
    require_encoder_shapes,
)
from .weights import PICKLES, Weights, describe_mismatch

SD15 = pathlib.Path(__file__).parents[1] / "data" / "shapes" / "sd15"
CHECKPOINT_SUFFIXES = (".safetensors", *PICKLES)
TAESD_PREFIX = VAE_PREFIX + "taesd_"
# How files say that they predict v: ComfyUI's key of that name and metadata, and the model specification's.
SAYS = ("modelspec.predict_key", "modelspec.prediction_type")
V_NAMES = ("v", "v_prediction", "v-prediction", "velocity")


def load_sd15_config(part: str) -> dict[str, Any]:
    """Return the configuration of a part of Stable Diffusion 1.5."""
    (file,) = (SD15 / part).glob("*.json")
    return json.loads(file.read_text(encoding="utf-8"))


def require_sd1(weights: Weights) -> None:
    """Raise AdvUnlearnError that says what a file is, unless it is a whole text-to-image checkpoint of SD 1.x."""
    what = detect_checkpoint_kind(weights.names, weights.shape)
    if what == SD1:
        homes, vae = find_encoder_prefixes(weights), any(n.startswith(VAE_PREFIX) for n in weights.names)
        what += "" if homes and vae else " without its text encoder" if not homes else " without its autoencoder"
    elif not what and find_encoder_prefixes(weights):
        what = "a CLIP text encoder alone"
    if what != SD1:
        found = what or f"no Stable Diffusion checkpoint; its first tensor is {min(weights.names, default='nothing')!r}"
        hint = ": use the text-to-image model it was made from" if what.startswith(SD1 + " for") else ""
        raise AdvUnlearnError(
            f"{weights.source} is {found}; --model takes whole text-to-image checkpoints of Stable Diffusion 1.x, and "
            f"diffusers folders of 1.x and XL{hint}"
        )


def detect_prediction_type(weights: Weights, wanted: str = "auto") -> str:
    """Return what a checkpoint predicts: what is wanted, or for "auto" what the file says, or epsilon.

    Raises AdvUnlearnError for an unknown name.
    """
    if wanted not in PREDICTION_TYPES:
        raise AdvUnlearnError(f"prediction type {wanted!r} is not known; give one of {', '.join(PREDICTION_TYPES)}")
    says_v = "v_pred" in weights.names or any(weights.metadata.get(key) in V_NAMES for key in SAYS)
    return wanted if wanted != "auto" else "v_prediction" if says_v else "epsilon"


def infer_unet_config(weights: Weights) -> dict[str, Any]:
    """Return a UNet's configuration in diffusers' words: SD 1.5's with the widths and blocks that the file has."""
    config, have = load_sd15_config("unet"), set(weights.names)
    levels: list[list[tuple[int, bool]]] = [[]]  # of each level its residual blocks: channels, followed by attention
    block = 1
    while any(f"{UNET_PREFIX}input_blocks.{block}.0.{part}" in have for part in ("op.weight", "in_layers.0.weight")):
        start = f"{UNET_PREFIX}input_blocks.{block}."
        if start + "0.op.weight" in have:
            levels.append([])
        elif start + "0.out_layers.3.weight" in have:
            channels = weights.shape(start + "0.out_layers.3.weight")[0]
            levels[-1].append((channels, start + "1.norm.weight" in have))
        block += 1
    if not all(levels):
        return config  # not the layout that is known: what it lacks is said where its tensors are checked
    crossed = ["CrossAttn" if level[0][1] else "" for level in levels]
    height, width = read_resolution(weights)
    return config | {
        "block_out_channels": [level[0][0] for level in levels],
        "layers_per_block": len(levels[0]),
        "down_block_types": [f"{cross}DownBlock2D" for cross in crossed],
        "up_block_types": [f"{cross}UpBlock2D" for cross in reversed(crossed)],
        "sample_size": height // 8 if height == width else [height // 8, width // 8],
    }


def read_resolution(weights: Weights) -> tuple[int, int]:
    """Return the height and width in pixels that a file says it was trained at; 512 x 512 where it says nothing."""
    said = re.fullmatch(r"(\d+)x(\d+)", weights.metadata.get("modelspec.resolution", ""))
    return (max(8, int(said[2])), max(8, int(said[1]))) if said else (512, 512)


def infer_vae_config(weights: Weights) -> dict[str, Any]:
    """Return the configuration of the autoencoder in a file: AutoencoderKL's, or AutoencoderTiny's for a TAESD_PREFIX.

    Raises AdvUnlearnError for a TAESD_PREFIX that shifts its latents, as those of other models do.
    """
    have = set(weights.names)
    if any(name.startswith(TAESD_PREFIX) for name in have):
        scale, shift = (
            float(weights.read(VAE_PREFIX + name)) if VAE_PREFIX + name in have else default
            for name, default in (("vae_scale", 1.0), ("vae_shift", 0.0))
        )
        first = TAESD_PREFIX + "decoder.1.weight"
        if shift or not scale or first not in have:
            raise AdvUnlearnError(f"{weights.source}: the TAESD_PREFIX in it is not one of Stable Diffusion 1.x")
        channels = [weights.shape(first)[0]] * 4
        return {
            "_class_name": "AutoencoderTiny",
            "scaling_factor": SD1_SCALING_FACTOR / scale,
            "encoder_block_out_channels": channels,
            "decoder_block_out_channels": channels,
        }
    config, channels = load_sd15_config("vae"), []
    while (name := f"{VAE_PREFIX}encoder.down.{len(channels)}.block.0.conv1.weight") in have:
        channels.append(weights.shape(name)[0])
    if not channels:
        return config
    return config | {
        "block_out_channels": channels,
        "layers_per_block": sum(
            re.fullmatch(rf"{VAE_PREFIX}encoder\.down\.0\.block\.\d+\.conv1\.weight", n) is not None for n in have
        ),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
    }


def infer_configs(weights: Weights, prediction: str = "auto") -> dict[str, dict[str, Any]]:
    """Return the configuration of a checkpoint's UNet, autoencoder, text encoder and scheduler, by their names.

    Args:
        weights: the file.
        prediction: 'epsilon' or 'v_prediction', or 'auto' for what the file says.

    Raises AdvUnlearnError for a file that is no text-to-image checkpoint of Stable Diffusion 1.x.
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


def read_states(weights: Weights, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a checkpoint's UNet, autoencoder and text encoder under the names of their classes.

    Raises AdvUnlearnError that names the first tensor that is missing, unknown or mis-shaped in one of them.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    def part(start: str) -> dict[str, Tensor]:
        return {name: weights.read(name) for name in weights.names if name.startswith(start)}

    vae = part(VAE_PREFIX)
    if configs["vae"]["_class_name"] == "AutoencoderTiny":
        vae = _taesd(vae)
    else:
        vae = _converted(convert_ldm_vae_checkpoint, vae, configs["vae"], f"{weights.source}: its autoencoder")
    found = {
        "unet": _converted(
            convert_ldm_unet_checkpoint, part(UNET_PREFIX), configs["unet"], f"{weights.source}: its UNet"
        ),
        "vae": vae,
        "text_encoder": extract_encoder(weights),
    }
    require_state_shapes(found, configs, weights.source)
    return found


def _converted(convert: Any, state: dict[str, Tensor], config: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    try:
        return convert(state, dict(config))
    except (KeyError, AttributeError) as error:  # what the converter meets where a tensor that it looks for is missing
        raise AdvUnlearnError(f"{source} has not the layout of Stable Diffusion 1.x ({error})") from error


def _taesd(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a TAESD's tensors under AutoencoderTiny's names: TAESD's decoder begins with a clamp that has none."""
    out = {}
    for name, tensor in state.items():
        if found := re.fullmatch(r"(encoder|decoder)\.(\d+)\.(.+)", name.removeprefix(TAESD_PREFIX)):
            out[f"{found[1]}.layers.{int(found[2]) - (found[1] == 'decoder')}.{found[3]}"] = tensor
    return out


def build_meta_modules(configs: Mapping[str, Mapping[str, Any]]) -> tuple[Any, Any]:
    """Return the UNet and the autoencoder of some configurations on the meta device: shapes without values."""
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    vae_class: Any = AutoencoderTiny if "Tiny" in configs["vae"]["_class_name"] else AutoencoderKL
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(configs["unet"]), vae_class.from_config(configs["vae"])


def require_state_shapes(
    states: Mapping[str, Mapping[str, Tensor]], configs: Mapping[str, Mapping[str, Any]], source: str
) -> None:
    """Raise AdvUnlearnError that names the first tensor that is missing, unknown or mis-shaped in a part."""
    unet, vae = build_meta_modules(configs)
    for part, title, own in (("unet", "its UNet", unet), ("vae", "its autoencoder", vae)):
        if wrong := describe_mismatch(get_shapes(own.state_dict()), get_shapes(states[part])):
            raise AdvUnlearnError(
                f"{source}: {title} {wrong}; it is not of Stable Diffusion 1.x's architecture, or not whole: fetch it "
                "again"
            )
    require_encoder_shapes(compute_encoder_shapes(configs["text_encoder"]), states["text_encoder"], source)
