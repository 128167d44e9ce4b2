"""What the commands are given: a model, a judge, an encoder file, a folder to write to."""

from __future__ import annotations

import pathlib
import shlex
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch

from ..config.training import RunConfig
from ..errors import AdvUnlearnError
from ..formats.inspect import decode_metadata
from ..formats.weights import open_weights
from ..judges import load as judges
from ..judges.base import Judge
from ..models import Denoiser, DiffusersDenoiser
from ..models.encoder_files import load_encoder, part_hashes
from ..models.loading import TextToImage, best_device, load
from ..models.unet_files import load_unet
from ..prompts import retain
from .flags import settings


def load_model(run: RunConfig) -> TextToImage:
    """Load the model a command was given."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    name = run.device or best_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AdvUnlearnError(f"device {name!r} cannot be used here ({error}); give cuda, mps or cpu") from error
    return load(run.model, device, getattr(torch, run.dtype), run.prediction_type)


def estimated_device(run: RunConfig) -> torch.device:
    """Return the device an estimate is for; it need not be there."""
    try:
        return torch.device(run.device or best_device())
    except RuntimeError as error:
        raise AdvUnlearnError(f"device {run.device!r} is not known ({error}); give cuda, mps or cpu") from error


def load_judge(args: Namespace) -> Judge:
    """Load the judge a command was given. Raises AdvUnlearnError for a setting that another judge has."""
    name, run = getattr(args, "judge", None), settings(RunConfig, args)
    if name is None and run.model != "miniature":
        raise AdvUnlearnError(
            f"there is no judge for model {run.model!r}; give --judge nudity, --judge clip:FOLDER or --judge FOLDER"
        )
    name = name or "miniature"
    names = judges.names_of(name)
    kinds = {judges.resolve(each)[0] for each in names} | ({"several"} if len(names) > 1 else set())
    for other in filter(None, judges.CONFIGS.values()):
        given = [k for k in vars(args) if k.startswith(other.__name__ + ".")]
        if given and other not in [judges.CONFIGS[kind] for kind in kinds]:
            flag = "--" + given[0].split(".")[1].replace("_", "-")
            raise AdvUnlearnError(f"{flag} is no setting of the judge {name!r}; leave it out, or give another --judge")
    return judges.load(name, lambda config: settings(config, args), run.device or best_device())


def lines_of(file: str | None, what: str) -> list[str]:
    """Return the lines of a file of prompts, or none without a file."""
    return retain.read(file, what) if file else []


def encoder_of(file: str | None, model: TextToImage) -> Any:
    """Return the encoder of a file, or the model's own; refuse one that was trained from another base model."""
    if not file:
        return model.text_encoder
    encoder, _ = load_encoder(file, model.text_encoder, lambda part, about: _require_base(part, about, model))
    return encoder


def unet_of(path: str | None, model: TextToImage) -> Denoiser:
    """Return a denoiser with the UNet of a folder or a checkpoint, or the model's own; refuse as `encoder_of` does."""
    if not path:
        return model.denoiser
    if not isinstance(model.denoiser, DiffusersDenoiser):
        raise AdvUnlearnError(f"model {model.name!r} has no diffusers UNet that {path} could take the place of")
    denoiser, metadata = load_unet(path, model.denoiser)
    _require_base(path, metadata, model)
    return denoiser


def recipe_of(path: str) -> dict[str, Any]:
    """Return what a report says of a trained file or folder: the settings in its metadata; its seconds are not known.

    Of SDXL's two encoders in a folder one speaks for both.
    """
    place, found = pathlib.Path(path), None
    inside = (sorted(place.glob(pattern)) for pattern in ("*.safetensors", "*/*.safetensors"))
    files = [place] if place.is_file() else [file for some in inside for file in some]
    if files and files[0].suffix == ".safetensors":  # pickles say nothing of themselves
        with open_weights(files[0]) as weights:
            found = decode_metadata(weights.metadata).get("recipe")
    return {"seconds": None, "config": found if isinstance(found, dict) else {}}


def _require_base(file: str, metadata: Mapping[str, str], model: TextToImage) -> None:
    base = metadata.get("advunlearn.base_sha256", "")
    if base not in ("", model.base_hash(), *part_hashes(model.text_encoder).values()):
        raise AdvUnlearnError(
            f"{file} was trained from the text encoder of {metadata.get('advunlearn.base_model')!r} "
            f"(sha256 {base[:12]}), which is not that of model {model.name!r}; give the --model it was trained from"
        )


def out_folder(args: Namespace) -> pathlib.Path:
    """Make the output folder."""
    path = pathlib.Path(args.out)
    if path.exists() and not path.is_dir():
        raise AdvUnlearnError(f"--out {args.out!r} is a file; give a folder")
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):  # a folder that cannot be written to fails here, not after the run
        return path


def command_line() -> str:
    """Return the command that was typed."""
    return shlex.join(["advunlearn", *sys.argv[1:]])
