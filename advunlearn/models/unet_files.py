"""Reads and writes what a run makes of a UNet: a diffusers folder, or a whole model as one checkpoint file."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from ..errors import AdvUnlearnError
from ..files import UNET_WEIGHTS, write_safetensors
from ..formats import single_file
from ..formats.detect import UNET_PREFIX, detect_weights_kind
from ..formats.ldm_keys import build_checkpoint_state, map_unet_keys
from ..formats.text_encoders import encode_metadata, export_state
from ..formats.weights import describe_mismatch, find_weights_file, open_weights
from .diffusers_denoiser import DiffusersDenoiser
from .loading import TextToImage

FORMATS = {"folder": "advunlearn.unet.v1", "checkpoint": "advunlearn.checkpoint.v1"}


def save_unet(folder: str | pathlib.Path, unet: Any, metadata: Mapping[str, Any]) -> pathlib.Path:
    """Write a folder that diffusers' UNet2DConditionModel loads; the weights, with `metadata`, are written atomically.

    Values of `metadata` that are not text are stored as JSON.
    """
    folder = pathlib.Path(folder)
    unet.save_config(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in unet.state_dict().items()}
    write_safetensors(folder / UNET_WEIGHTS[0], state, _text(metadata, "folder"))
    return folder


def save_checkpoint(
    path: str | pathlib.Path, model: TextToImage, encoder: Any, denoiser: DiffusersDenoiser, metadata: Mapping[str, Any]
) -> pathlib.Path:
    """Write `model`, with a trained encoder or UNet in it, as one Stable Diffusion 1.x checkpoint, atomically.

    Every tensor keeps its values and its dtype. Raises AdvUnlearnError for a UNet, or a schedule, that the format
    has no names for.
    """
    text = {name: tensor for name, tensor in export_state(encoder).items() if name.startswith("text_model.")}
    scale = model.vae.config.scaling_factor
    state = build_checkpoint_state(denoiser.unet.state_dict(), text, model.vae.state_dict(), scale)
    says = {"ztsnr": has_zero_snr(denoiser), "v_pred": denoiser.prediction_type == "v_prediction"}
    state |= {key: torch.zeros(0) for key, true in says.items() if true}
    height, width = (8 * side for side in denoiser.latent_shape[1:])
    about = {
        "modelspec.title": f"{model.name}, unlearned",
        "modelspec.prediction_type": denoiser.prediction_type,
        "modelspec.resolution": f"{width}x{height}",
    }
    return write_safetensors(path, state, _text({**about, **metadata}, "checkpoint"))


def has_zero_snr(denoiser: DiffusersDenoiser) -> bool:
    """Return whether a denoiser has Stable Diffusion 1.x's schedule with zero terminal SNR, and not as it is.

    Raises AdvUnlearnError for any other schedule.
    """
    from diffusers import DDIMScheduler

    own = denoiser.alphas_cumprod
    for zero in (False, True):
        plain = DDIMScheduler.from_config(single_file.load_sd15_config("scheduler") | {"rescale_betas_zero_snr": zero})
        if own.shape == plain.alphas_cumprod.shape and torch.allclose(own, plain.alphas_cumprod, atol=1e-6):
            return zero
    raise AdvUnlearnError(
        "a checkpoint in one file cannot say that its noise schedule is another than Stable Diffusion 1.x's; leave "
        "--single-file out"
    )


def _text(metadata: Mapping[str, Any], kind: str) -> dict[str, str]:
    return {"format": "pt", "advunlearn.format": FORMATS[kind], **encode_metadata(metadata)}


def load_unet(path: str | pathlib.Path, like: DiffusersDenoiser) -> tuple[DiffusersDenoiser, dict[str, str]]:
    """Return a denoiser as `like` with the UNet of a file, and the file's metadata.

    Args:
        path: a diffusers UNet's folder, or one that holds it under `unet`; or a file with a UNet's weights under
            diffusers' or the original names, a whole checkpoint among them.
        like: the model's own, whose shapes and dtype the UNet gets; it is unchanged.

    Raises AdvUnlearnError when there is no UNet, or that names the first missing, unknown or mis-shaped tensor.
    """
    advice = "a diffusers UNet's folder, such as the unet that a training run wrote, or a checkpoint"
    file, own = find_weights_file(path, UNET_WEIGHTS, ("unet",), advice), like.unet.state_dict()
    with open_weights(file) as weights:
        names, read, metadata = weights.names, weights.read, weights.metadata
        start, keys = _layout(names, own, lambda: detect_weights_kind(names, weights.shape), file)
        needed = {keys[name]: tuple(tensor.shape) for name, tensor in own.items()}
        given = {name: weights.shape(name) for name in names if name.startswith(start)}
        if wrong := describe_mismatch(needed, given, "a UNet's "):
            raise AdvUnlearnError(
                f"{file} {wrong}: it is not a UNet of this model's shape; give one that was trained from the same model"
            )
        tensors = {name: read(key) for name, key in keys.items()}
    trained = like.with_modules(copy.deepcopy)
    trained.unet.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in tensors.items()})
    return trained, metadata


def _layout(
    names: Sequence[str], own: Iterable[str], what: Callable[[], str], file: pathlib.Path
) -> tuple[str, dict[str, str]]:
    """Return the prefix under which a file holds a UNet, and what it calls each of the UNet's `own` weights."""
    if "conv_in.weight" in names:
        return "", {name: name for name in own}
    for start in (UNET_PREFIX, ""):
        if start + "input_blocks.0.0.weight" in names:
            return start, {name: start + key for name, key in map_unet_keys(own).items()}
    found = f"it is {what()}" if what() else f"its first tensor is {min(names, default='nothing')!r}"
    raise AdvUnlearnError(f"{file} holds no UNet: {found}; give the unet folder that a training run wrote")
