"""Read and write trained UNets: as a diffusers folder, or inside a single-file checkpoint of the whole model."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import AdvUnlearnError
from ..files import UNET_WEIGHTS
from ..formats import single_file
from ..formats.detect import UNET_PREFIX, detect_weights_kind
from ..formats.ldm_keys import build_checkpoint_state, map_unet_keys
from ..formats.tensors import write_safetensors
from ..formats.text_encoders import encode_metadata, export_state
from ..formats.weights import describe_mismatch, find_weights_file, open_weights
from .diffusers_denoiser import DiffusersDenoiser
from .loading import TextToImage

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

FORMATS = {"folder": "advunlearn.unet.v1", "checkpoint": "advunlearn.checkpoint.v1"}


def save_unet(folder: str | pathlib.Path, unet: UNet2DConditionModel, metadata: Mapping[str, object]) -> pathlib.Path:
    """Write a folder for diffusers' UNet2DConditionModel; the weights and `metadata` are one file, written atomically.

    Values of `metadata` other than strings are stored as JSON.
    """
    folder = pathlib.Path(folder)
    unet.save_config(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in unet.state_dict().items()}
    write_safetensors(folder / UNET_WEIGHTS[0], state, _text(metadata, "folder"))
    return folder


def save_checkpoint(
    path: str | pathlib.Path,
    model: TextToImage,
    encoder: nn.Module,
    denoiser: DiffusersDenoiser,
    metadata: Mapping[str, object],
) -> pathlib.Path:
    """Write `model`, with a trained encoder or UNet, as a Stable Diffusion 1.x checkpoint, atomically.

    Every tensor keeps its values and its dtype. Raises AdvUnlearnError for a UNet or a noise schedule that the format
    cannot represent.
    """
    text = {name: tensor for name, tensor in export_state(encoder).items() if name.startswith("text_model.")}
    scale = model.vae.config.scaling_factor
    state = build_checkpoint_state(denoiser.unet.state_dict(), text, model.vae.state_dict(), scale)
    flags = {"ztsnr": has_zero_snr(denoiser), "v_pred": denoiser.prediction_type == "v_prediction"}
    state |= {key: torch.zeros(0) for key, value in flags.items() if value}
    height, width = (8 * side for side in denoiser.latent_shape[1:])
    description = {
        "modelspec.title": f"{model.name}, unlearned",
        "modelspec.prediction_type": denoiser.prediction_type,
        "modelspec.resolution": f"{width}x{height}",
    }
    return write_safetensors(path, state, _text({**description, **metadata}, "checkpoint"))


def has_zero_snr(denoiser: DiffusersDenoiser) -> bool:
    """Return whether a denoiser has Stable Diffusion 1.x's noise schedule rescaled to zero terminal SNR.

    Raises AdvUnlearnError for any schedule other than these two.
    """
    from diffusers import DDIMScheduler

    alphas = denoiser.alphas_cumprod
    config = single_file.load_sd15_config("scheduler")
    for zero in (False, True):
        expected = DDIMScheduler.from_config(config | {"rescale_betas_zero_snr": zero}).alphas_cumprod
        if alphas.shape == expected.shape and torch.allclose(alphas, expected, atol=1e-6):
            return zero
    raise AdvUnlearnError(
        "a single-file checkpoint can only have the noise schedule of Stable Diffusion 1.x, and this model has another "
        "one; leave --single-file out"
    )


def _text(metadata: Mapping[str, object], kind: str) -> dict[str, str]:
    return {"format": "pt", "advunlearn.format": FORMATS[kind], **encode_metadata(metadata)}


def load_unet(path: str | pathlib.Path, like: DiffusersDenoiser) -> tuple[DiffusersDenoiser, dict[str, str]]:
    """Return a copy of a denoiser with the UNet of a file, and the file's metadata.

    Args:
        path: a diffusers UNet's folder, or the folder that contains it as `unet`; or a file with a UNet's weights under
            diffusers' or the original names, such as a checkpoint.
        like: the model's denoiser, with the same shapes; its dtype is kept. It is unchanged.

    Raises AdvUnlearnError when there is no UNet, or when one of its tensors is missing, unknown or mis-shaped.
    """
    advice = "a diffusers UNet's folder, such as the unet that a training run wrote, or a checkpoint"
    file = find_weights_file(path, UNET_WEIGHTS, ("unet",), advice)
    state = like.unet.state_dict()
    with open_weights(file) as weights:
        names = weights.names
        metadata = weights.metadata
        prefix, keys = _find_layout(names, state, lambda: detect_weights_kind(names, weights.shape), file)
        needed = {keys[name]: tuple(tensor.shape) for name, tensor in state.items()}
        stored = {name: weights.shape(name) for name in names if name.startswith(prefix)}
        if wrong := describe_mismatch(needed, stored, "a UNet's "):
            raise AdvUnlearnError(
                f"{file} {wrong}: it is not a UNet of this model's shape; give one that was trained from the same model"
            )
        tensors = {name: weights.read(key) for name, key in keys.items()}
    trained = like.with_modules(copy.deepcopy)
    trained.unet.load_state_dict({name: tensor.to(state[name].dtype) for name, tensor in tensors.items()})
    return trained, metadata


def _find_layout(
    names: Sequence[str], needed: Iterable[str], detect_kind: Callable[[], str], file: pathlib.Path
) -> tuple[str, dict[str, str]]:
    """Return the prefix of a UNet's weights in a file, and the file's name for each of the `needed` weights."""
    if "conv_in.weight" in names:
        return "", {name: name for name in needed}
    for prefix in (UNET_PREFIX, ""):
        if prefix + "input_blocks.0.0.weight" in names:
            return prefix, {name: prefix + key for name, key in map_unet_keys(needed).items()}
    kind = detect_kind()
    found = f"it is {kind}" if kind else f"its first tensor is {min(names, default='nothing')!r}"
    raise AdvUnlearnError(f"{file} contains no UNet: {found}; give the unet folder that a training run wrote")
