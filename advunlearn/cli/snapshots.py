"""Intermediate encoders in the folder of a training run: `--keep-every`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from torch import nn

from ..config.io import OutputConfig
from ..config.training import RunConfig
from ..errors import AdvUnlearnError
from ..files import SNAPSHOTS
from ..formats.text_encoders import choose_file_dtype, save_encoder
from ..models.loading import TextToImage
from ..models.text_encoder import encoder_parts
from ..reporting.snapshots import Snapshots, make_samples
from ..training.recipe import recipe_metadata


def make_snapshots(
    model: TextToImage,
    run: RunConfig,
    prompts: Sequence[str],
    output: OutputConfig,
    folder: pathlib.Path,
    resume: bool,
) -> Snapshots | None:
    """Return what keeps a run's intermediate encoders; None if the settings want none.

    Raises AdvUnlearnError for a run that trains something else than one text encoder.
    """
    if not output.keep_every:
        return None
    if run.train.unet_method or len(encoder_parts(model.text_encoder)) > 1:
        raise AdvUnlearnError("keep_every keeps the text encoder of Stable Diffusion 1.x; set it to 0 for this run")

    def save(encoder: nn.Module, iteration: int) -> str:
        path = folder / SNAPSHOTS / f"{iteration:06}.safetensors"
        metadata = recipe_metadata(model, run, iterations=iteration)
        return save_encoder(path, encoder, metadata, choose_file_dtype(output.encoder_dtype, encoder)).name

    samples = make_samples(model, run.concept.prompts[0], prompts)
    return Snapshots(samples, output.keep_every, save, folder / SNAPSHOTS, resume)
