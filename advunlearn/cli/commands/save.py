"""Save the result of a training run: an encoder or a UNet, and optionally the whole model."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from ...config.io import FileDtype
from ...config.training import TrainConfig
from ...errors import AdvUnlearnError
from ...formats.ldm_keys import map_unet_keys
from ...formats.text_encoders import choose_file_dtype, save_encoder
from ...models.diffusers_denoiser import DiffusersDenoiser
from ...models.encoder_files import save_encoders
from ...models.loading import TextToImage
from ...models.text_encoder import encoder_parts
from ...models.unet_files import has_zero_snr, save_checkpoint, save_unet
from ...training.trainer import TrainResult

SINGLE_FILE = "checkpoint.safetensors"


def save_trained(
    folder: pathlib.Path,
    result: TrainResult,
    config: TrainConfig,
    metadata: Mapping[str, object],
    file_dtype: FileDtype = "auto",
    last_good: bool = False,
) -> pathlib.Path:
    """Write what was trained and return its path: `encoder.safetensors`, or the folder `unet`.

    For Stable Diffusion XL it is the folder that has a file for each trained encoder. The weights of a run that
    diverged are written under names that begin with `last-good`. `file_dtype` is that of a text encoder's file.
    """
    if config.unet_method and isinstance(result.denoiser, DiffusersDenoiser):
        return save_unet(folder / ("last-good-unet" if last_good else "unet"), result.denoiser.unet, metadata)
    dtype = choose_file_dtype(file_dtype, result.encoder)
    if len(encoder_parts(result.encoder)) > 1:
        target = folder / "last-good" if last_good else folder
        return save_encoders(target, result.encoder, config.encoders, metadata, dtype)[0].parent
    path = folder / ("last-good.safetensors" if last_good else "encoder.safetensors")
    return save_encoder(path, result.encoder, metadata, dtype)


def check_single_file(model: TextToImage) -> None:
    """Raise AdvUnlearnError, before a run, for a model that cannot be saved as one Stable Diffusion 1.x checkpoint."""
    if not isinstance(model.denoiser, DiffusersDenoiser):
        raise AdvUnlearnError("a single file needs a diffusers UNet, and this model has none; leave --single-file out")
    if len(encoder_parts(model.text_encoder)) > 1:
        raise AdvUnlearnError("only Stable Diffusion 1.x can be written as a single file; leave --single-file out")
    map_unet_keys(model.denoiser.unet.state_dict())
    has_zero_snr(model.denoiser)


def save_single_file(
    folder: pathlib.Path, model: TextToImage, result: TrainResult, metadata: Mapping[str, object]
) -> pathlib.Path:
    """Write the trained model as one Stable Diffusion 1.x checkpoint; return the file."""
    assert isinstance(result.denoiser, DiffusersDenoiser)  # `check_single_file` has checked it
    return save_checkpoint(folder / SINGLE_FILE, model, result.encoder, result.denoiser, metadata)
