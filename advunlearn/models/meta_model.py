"""Build a model from its configuration files only: all layers and shapes, no weights."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import torch
from torch import nn

from ..errors import AdvUnlearnError
from ..files import CLIP_TOKENIZER
from ..formats import single_file
from ..formats.single_file import SECOND_TEXT_ENCODER
from ..formats.supported import require_many_steps, require_schedule
from ..formats.text_encoders import ConfigDict
from ..formats.weights import open_weights
from .loading import Components, TextToImage, assemble, choose_vae_dtype, find_model, read_config, read_tokenizer
from .placement import uses_plain_attention
from .sdxl_text_encoder import DualTextEncoder

SHAPES = pathlib.Path(__file__).parents[1] / "data" / "shapes"
SHIPPED_SHAPES = ("sd15", "sdxl")


def skeleton(name: str, device: torch.device, dtype: torch.dtype) -> TextToImage:
    """Return the model that `loading.load` would return, with all weights on the meta device (no memory).

    Args:
        name: 'sd15' or 'sdxl' (the shipped shapes of Stable Diffusion 1.5 and XL); 'miniature'; a diffusers folder, of
            which only the configuration files and the tokenizer are read; or a single-file checkpoint, of which only
            the shapes are read (all of it for a pickle).
        device: where the model would be; it need not exist.
        dtype: of the frozen parts.

    Raises AdvUnlearnError for a model that cannot be read.
    """
    path = SHAPES / name if name in SHIPPED_SHAPES else find_model(name)
    try:
        parts = _blank_parts(path, device, dtype)
    except AdvUnlearnError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdvUnlearnError(f"the configuration of model {name!r} could not be read: {error}") from error
    return assemble(name, parts, device, dtype)


def _blank_parts(path: pathlib.Path, device: torch.device, dtype: torch.dtype) -> Components:
    from diffusers import DDIMScheduler

    configs = _read_configs(path)
    require_many_steps(str(path))
    require_schedule(configs["scheduler"], str(path))
    folder = path / "tokenizer"
    encoder = _blank_text_encoder(configs, "eager" if uses_plain_attention(device, dtype) else "sdpa")
    tokenizer = read_tokenizer(folder if folder.is_dir() else CLIP_TOKENIZER, encoder)
    unet, vae = single_file.build_meta_modules(configs)
    unet = nn.Module.to(unet, dtype)
    vae = nn.Module.to(vae, choose_vae_dtype(vae, encoder, dtype))
    return Components(tokenizer, encoder, unet, vae, DDIMScheduler.from_config(configs["scheduler"]))


def _blank_text_encoder(configs: Mapping[str, ConfigDict], attention: str) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    option = {"attn_implementation": attention}
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**{**configs["text_encoder"], **option})).float()
        if SECOND_TEXT_ENCODER not in configs:
            return encoder
        config = CLIPTextConfig(**{**configs[SECOND_TEXT_ENCODER], **option})
        return DualTextEncoder(encoder, CLIPTextModelWithProjection(config).float())


def _read_configs(path: pathlib.Path) -> dict[str, ConfigDict]:
    """Return the configuration of each part of a diffusers folder or a single-file checkpoint."""
    if path.is_file():
        with open_weights(path) as weights:
            return single_file.infer_configs(weights)
    parts = ("unet", "vae", "text_encoder", SECOND_TEXT_ENCODER, "scheduler")
    return {part: read_config(path / part) for part in parts if (path / part).is_dir()}
