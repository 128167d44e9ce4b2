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
from .detect import SD1, UNET, checkpoint_of
from .ldm_keys import VAE, VAE_SCALE
from .text_encoders import encoder_in, homes_of, require_state, shapes_of, text_shapes
from .weights import PICKLES, Weights, mismatch

SD15 = pathlib.Path(__file__).parents[1] / "data" / "shapes" / "sd15"
SUFFIXES = (".safetensors", *PICKLES)
TAESD = VAE + "taesd_"
# How files say that they predict v: ComfyUI's key of that name and metadata, and the model specification's.
SAYS = ("modelspec.predict_key", "modelspec.prediction_type")
V_NAMES = ("v", "v_prediction", "v-prediction", "velocity")


def shipped(part: str) -> dict[str, Any]:
    """Return the configuration of a part of Stable Diffusion 1.5."""
    (file,) = (SD15 / part).glob("*.json")
    return json.loads(file.read_text(encoding="utf-8"))


def require_sd1(weights: Weights) -> None:
    """Raise AdvUnlearnError that says what a file is, unless it is a whole text-to-image checkpoint of SD 1.x."""
    what = checkpoint_of(weights.names, weights.shape)
    if what == SD1:
        homes, vae = homes_of(weights), any(n.startswith(VAE) for n in weights.names)
        what += "" if homes and vae else " without its text encoder" if not homes else " without its autoencoder"
    elif not what and homes_of(weights):
        what = "a CLIP text encoder alone"
    if what != SD1:
        found = what or f"no Stable Diffusion checkpoint; its first tensor is {min(weights.names, default='nothing')!r}"
        hint = ": use the text-to-image model it was made from" if what.startswith(SD1 + " for") else ""
        raise AdvUnlearnError(
            f"{weights.source} is {found}; --model takes whole text-to-image checkpoints of Stable Diffusion 1.x, and "
            f"diffusers folders of 1.x and XL{hint}"
        )


def prediction_type(weights: Weights, wanted: str = "auto") -> str:
    """Return what a checkpoint predicts: what is wanted, or for "auto" what the file says, or epsilon.

    Raises AdvUnlearnError for an unknown name.
    """
    if wanted not in PREDICTION_TYPES:
        raise AdvUnlearnError(f"prediction type {wanted!r} is not known; give one of {', '.join(PREDICTION_TYPES)}")
    says_v = "v_pred" in weights.names or any(weights.metadata.get(key) in V_NAMES for key in SAYS)
    return wanted if wanted != "auto" else "v_prediction" if says_v else "epsilon"


def unet_config(weights: Weights) -> dict[str, Any]:
    """Return a UNet's configuration in diffusers' words: SD 1.5's with the widths and blocks that the file has."""
    config, have = shipped("unet"), set(weights.names)
    levels: list[list[tuple[int, bool]]] = [[]]  # of each level its residual blocks: channels, followed by attention
    block = 1
    while any(f"{UNET}input_blocks.{block}.0.{part}" in have for part in ("op.weight", "in_layers.0.weight")):
        start = f"{UNET}input_blocks.{block}."
        if start + "0.op.weight" in have:
            levels.append([])
        elif start + "0.out_layers.3.weight" in have:
            channels = weights.shape(start + "0.out_layers.3.weight")[0]
            levels[-1].append((channels, start + "1.norm.weight" in have))
        block += 1
    if not all(levels):
        return config  # not the layout that is known: what it lacks is said where its tensors are checked
    crossed = ["CrossAttn" if level[0][1] else "" for level in levels]
    height, width = resolution(weights)
    return config | {
        "block_out_channels": [level[0][0] for level in levels],
        "layers_per_block": len(levels[0]),
        "down_block_types": [f"{cross}DownBlock2D" for cross in crossed],
        "up_block_types": [f"{cross}UpBlock2D" for cross in reversed(crossed)],
        "sample_size": height // 8 if height == width else [height // 8, width // 8],
    }


def resolution(weights: Weights) -> tuple[int, int]:
    """Return the height and width in pixels that a file says it was trained at; 512 x 512 where it says nothing."""
    said = re.fullmatch(r"(\d+)x(\d+)", weights.metadata.get("modelspec.resolution", ""))
    return (max(8, int(said[2])), max(8, int(said[1]))) if said else (512, 512)


def vae_config(weights: Weights) -> dict[str, Any]:
    """Return the configuration of the autoencoder in a file: AutoencoderKL's, or AutoencoderTiny's for a TAESD.

    Raises AdvUnlearnError for a TAESD that shifts its latents, as those of other models do.
    """
    have = set(weights.names)
    if any(name.startswith(TAESD) for name in have):
        scale, shift = (
            float(weights.read(VAE + name)) if VAE + name in have else default
            for name, default in (("vae_scale", 1.0), ("vae_shift", 0.0))
        )
        first = TAESD + "decoder.1.weight"
        if shift or not scale or first not in have:
            raise AdvUnlearnError(f"{weights.source}: the TAESD in it is not one of Stable Diffusion 1.x")
        channels = [weights.shape(first)[0]] * 4
        return {
            "_class_name": "AutoencoderTiny",
            "scaling_factor": VAE_SCALE / scale,
            "encoder_block_out_channels": channels,
            "decoder_block_out_channels": channels,
        }
    config, channels = shipped("vae"), []
    while (name := f"{VAE}encoder.down.{len(channels)}.block.0.conv1.weight") in have:
        channels.append(weights.shape(name)[0])
    if not channels:
        return config
    return config | {
        "block_out_channels": channels,
        "layers_per_block": sum(
            re.fullmatch(rf"{VAE}encoder\.down\.0\.block\.\d+\.conv1\.weight", n) is not None for n in have
        ),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
    }


def configs(weights: Weights, prediction: str = "auto") -> dict[str, dict[str, Any]]:
    """Return the configuration of a checkpoint's UNet, autoencoder, text encoder and scheduler, by their names.

    Args:
        weights: the file.
        prediction: 'epsilon' or 'v_prediction', or 'auto' for what the file says.

    Raises AdvUnlearnError for a file that is no text-to-image checkpoint of Stable Diffusion 1.x.
    """
    require_sd1(weights)
    schedule = {
        "prediction_type": prediction_type(weights, prediction),
        "rescale_betas_zero_snr": "ztsnr" in weights.names,
    }
    return {
        "unet": unet_config(weights),
        "vae": vae_config(weights),
        "text_encoder": shipped("text_encoder"),
        "scheduler": shipped("scheduler") | schedule,
    }


def states(weights: Weights, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a checkpoint's UNet, autoencoder and text encoder under the names of their classes.

    Raises AdvUnlearnError that names the first tensor that is missing, unknown or mis-shaped in one of them.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    def part(start: str) -> dict[str, Tensor]:
        return {name: weights.read(name) for name in weights.names if name.startswith(start)}

    vae = part(VAE)
    if configs["vae"]["_class_name"] == "AutoencoderTiny":
        vae = _taesd(vae)
    else:
        vae = _converted(convert_ldm_vae_checkpoint, vae, configs["vae"], f"{weights.source}: its autoencoder")
    found = {
        "unet": _converted(convert_ldm_unet_checkpoint, part(UNET), configs["unet"], f"{weights.source}: its UNet"),
        "vae": vae,
        "text_encoder": encoder_in(weights),
    }
    require_parts(found, configs, weights.source)
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
        if found := re.fullmatch(r"(encoder|decoder)\.(\d+)\.(.+)", name.removeprefix(TAESD)):
            out[f"{found[1]}.layers.{int(found[2]) - (found[1] == 'decoder')}.{found[3]}"] = tensor
    return out


def blank(configs: Mapping[str, Mapping[str, Any]]) -> tuple[Any, Any]:
    """Return the UNet and the autoencoder of some configurations on the meta device: shapes without values."""
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    vae_class: Any = AutoencoderTiny if "Tiny" in configs["vae"]["_class_name"] else AutoencoderKL
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(configs["unet"]), vae_class.from_config(configs["vae"])


def require_parts(
    states: Mapping[str, Mapping[str, Tensor]], configs: Mapping[str, Mapping[str, Any]], source: str
) -> None:
    """Raise AdvUnlearnError that names the first tensor that is missing, unknown or mis-shaped in a part."""
    unet, vae = blank(configs)
    for part, title, own in (("unet", "its UNet", unet), ("vae", "its autoencoder", vae)):
        if wrong := mismatch(shapes_of(own.state_dict()), shapes_of(states[part])):
            raise AdvUnlearnError(
                f"{source}: {title} {wrong}; it is not of Stable Diffusion 1.x's architecture, or not whole: fetch it "
                "again"
            )
    require_state(text_shapes(configs["text_encoder"]), states["text_encoder"], source)
