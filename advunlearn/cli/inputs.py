"""The inputs of the commands: models, judges, encoder files, output folders."""

from __future__ import annotations

import pathlib
import shlex
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping

import torch
from torch import nn

from .. import miniature
from ..config.io import ModelConfig
from ..config.renamed import with_current_names
from ..errors import AdvUnlearnError
from ..formats.inspect import decode_metadata
from ..formats.weights import open_weights
from ..judges.base import Judge
from ..judges.load import JUDGE_CONFIGS, make_judge, parse_judge_name
from ..models.denoiser import Denoiser
from ..models.diffusers_denoiser import DiffusersDenoiser
from ..models.encoder_files import load_encoder, part_hashes
from ..models.loading import TextToImage, load
from ..models.placement import best_device
from ..models.unet_files import load_unet
from ..prompts.prompt_files import PromptFile, read_prompt_file
from .flags import given_settings, make_flag, settings


def load_model(config: ModelConfig) -> TextToImage:
    """Load the model of a command."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    name = config.device or best_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AdvUnlearnError(f"device {name!r} cannot be used here ({error}); give cuda, mps or cpu") from error
    return load(
        config.model,
        device,
        getattr(torch, config.dtype),
        config.prediction_type,
        config.clip_skip,
        config.long_prompts,
    )


def parse_device(config: ModelConfig) -> torch.device:
    """Return the device of an estimate, which need not exist on this machine."""
    try:
        return torch.device(config.device or best_device())
    except RuntimeError as error:
        raise AdvUnlearnError(f"device {config.device!r} is not known ({error}); give cuda, mps or cpu") from error


def load_judge(args: Namespace) -> Judge:
    """Load the judge of a command. Raises AdvUnlearnError for a setting that only another judge has."""
    name, config = getattr(args, "judge", None), settings(ModelConfig, args)
    if name is None and config.model != "miniature":
        raise AdvUnlearnError(
            f"there is no judge for model {config.model!r}; give --judge nudity, --judge clip:FOLDER or --judge FOLDER"
        )
    name = name or "miniature"
    kind, _ = parse_judge_name(name)
    for other, judge_config in JUDGE_CONFIGS.items():
        if other != kind and (given := list(given_settings(judge_config, args))):
            raise AdvUnlearnError(
                f"{make_flag(given[0])} is no setting of the judge {name!r}; leave it out, or give another --judge"
            )
    return make_judge(name, lambda judge: settings(judge, args), config.device or best_device())


def resolve_miniature(name: str) -> str:
    """Return the folder of the shipped model for "miniature"; any other path stays as it is."""
    return str(miniature.path()) if name == "miniature" else name


def open_prompts(path: str, what: str, column: str = "", verbose: bool = True) -> PromptFile:
    """Read a prompt file, and say on stderr how many prompts were read, the first and the last."""
    file = read_prompt_file(path, what, column)
    if verbose:
        print_note(file.describe())
    return file


def print_note(text: str) -> None:
    """Print what a user should know before a command works, on stderr."""
    sys.stderr.write(f"{text}\n")


def load_trained_encoder(file: str | None, model: TextToImage) -> nn.Module:
    """Load a text encoder; without a file return the model's own.

    Raises AdvUnlearnError for an encoder that was trained from another base model.
    """
    if not file:
        return model.text_encoder
    encoder, _ = load_encoder(file, model.text_encoder, lambda part, metadata: _check_base(part, metadata, model))
    return encoder


def load_trained_unet(path: str | None, model: TextToImage) -> Denoiser:
    """Load a UNet from a folder or a checkpoint; without a path return the model's own denoiser.

    Raises AdvUnlearnError for a UNet that was trained from another base model.
    """
    if not path:
        return model.denoiser
    if not isinstance(model.denoiser, DiffusersDenoiser):
        raise AdvUnlearnError(f"model {model.name!r} has no diffusers UNet that {path} could replace")
    denoiser, metadata = load_unet(path, model.denoiser)
    _check_base(path, metadata, model)
    return denoiser


def read_recipe(path: str) -> dict[str, object]:
    """Return the training settings in the metadata of a trained file or folder, by their current names.

    Both encoders of a Stable Diffusion XL folder have the same recipe, so that of the first is returned.
    """
    place = pathlib.Path(path)
    inside = [*sorted(place.glob("*.safetensors")), *sorted(place.glob("*/*.safetensors"))]
    files = [place] if place.is_file() else inside
    recipe = None
    if files and files[0].suffix == ".safetensors":  # pickles have no metadata
        with open_weights(files[0]) as weights:
            recipe = decode_metadata(weights.metadata).get("recipe")
    return {"seconds": None, "config": with_current_names(recipe) if isinstance(recipe, dict) else {}}


def _check_base(file: str, metadata: Mapping[str, str], model: TextToImage) -> None:
    base = metadata.get("advunlearn.base_sha256", "")
    if base not in ("", model.base_hash(), *part_hashes(model.text_encoder).values()):
        raise AdvUnlearnError(
            f"{file} was trained from the text encoder of {metadata.get('advunlearn.base_model')!r} "
            f"(sha256 {base[:12]}), which is not that of model {model.name!r}; give the --model it was trained from"
        )


def make_out_folder(args: Namespace) -> pathlib.Path:
    """Make the output folder. Raises AdvUnlearnError or OSError if that is not possible."""
    path = pathlib.Path(args.out)
    if path.exists() and not path.is_dir():
        raise AdvUnlearnError(f"--out {args.out!r} is a file; give a folder")
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):  # a folder without write permission fails now, not after the run
        return path


def command_line() -> str:
    """Return the command as it was typed."""
    return shlex.join(["advunlearn", *sys.argv[1:]])
