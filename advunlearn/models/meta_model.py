"""A model from its configuration files alone: every layer and shape, no weights."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
from torch import nn

from ..errors import AdvUnlearnError
from ..formats import single_file
from ..formats.weights import open_weights
from .loading import CLIP_TOKENIZER, SECOND, TextToImage, assembled, plain_attention, resolve, vae_dtype
from .sdxl_text_encoder import DualTextEncoder

SHAPES = pathlib.Path(__file__).parents[1] / "data" / "shapes"
SHIPPED = ("sd15", "sdxl")


def skeleton(name: str, device: torch.device, dtype: torch.dtype) -> TextToImage:
    """Return what `models.load` would, with all weights on the meta device: it takes no memory.

    Args:
        name: 'sd15' or 'sdxl' (the shapes of Stable Diffusion 1.5 and XL, which are shipped), 'miniature', a
            diffusers folder, of which only the configuration files and the tokenizer are read, or a single-file
            checkpoint, of which only the shapes are (a pickle is read whole).
        device: where the model would be; nothing is done there.
        dtype: of the frozen parts.

    Raises AdvUnlearnError for a model that cannot be read.
    """
    from diffusers import DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder = SHAPES / name if name in SHIPPED else resolve(name)
    try:
        if folder.is_file():
            with open_weights(folder) as weights:
                configs = single_file.infer_configs(weights)
        else:
            parts = ("unet", "vae", "text_encoder", SECOND, "scheduler")
            configs = {part: _config(folder / part) for part in parts if (folder / part).is_dir()}
        vocabulary = folder / "tokenizer"
        tokenizer = CLIPTokenizer.from_pretrained(
            vocabulary if vocabulary.is_dir() else CLIP_TOKENIZER, local_files_only=True
        )
        scheduler = DDIMScheduler.from_config(configs["scheduler"])
        attention = {"attn_implementation": "eager" if plain_attention(device, dtype) else "sdpa"}
        with torch.device("meta"):
            encoder: Any = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"] | attention)).float()
            if SECOND in configs:
                second = CLIPTextModelWithProjection(CLIPTextConfig(**configs[SECOND] | attention)).float()
                encoder = DualTextEncoder(encoder, second)
        unet, vae = single_file.build_meta_modules(configs)
        unet, vae = nn.Module.to(unet, dtype), nn.Module.to(vae, vae_dtype(vae, encoder, dtype))
    except AdvUnlearnError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdvUnlearnError(f"the configuration of model {name!r} could not be read: {error}") from error
    for part in (encoder, unet, vae):
        part.train(False).requires_grad_(False)
    return assembled(name, (tokenizer, encoder, unet, vae, scheduler), device, dtype)


def _config(folder: pathlib.Path) -> dict[str, Any]:
    name = "scheduler_config.json" if folder.name == "scheduler" else "config.json"
    return json.loads((folder / name).read_text(encoding="utf-8"))
