"""A model from its configuration files alone: every layer and shape, no weights."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
from torch import nn

from .errors import AdvUnlearnError
from .models import CLIP_TOKENIZER, TextToImage, assembled, plain_attention, resolve

SD15 = pathlib.Path(__file__).parent / "shapes" / "sd15"


def skeleton(name: str, device: torch.device, dtype: torch.dtype) -> TextToImage:
    """Return what `models.load` would, with all weights on the meta device: it takes no memory.

    Args:
        name: 'sd15' (the shape of Stable Diffusion 1.5, whose configuration is shipped), 'miniature', or a diffusers
            folder, of which only the configuration files and the tokenizer are read.
        device: where the model would be; nothing is done there.
        dtype: of the frozen parts.

    Raises AdvUnlearnError for a folder that cannot be read.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = SD15 if name == "sd15" else resolve(name)
    try:
        configs = {part: _config(folder / part) for part in ("unet", "vae", "text_encoder")}
        tokenizer = CLIPTokenizer.from_pretrained(
            CLIP_TOKENIZER if name == "sd15" else folder / "tokenizer", local_files_only=True
        )
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        vae_class: Any = AutoencoderTiny if "Tiny" in configs["vae"]["_class_name"] else AutoencoderKL
        with torch.device("meta"):
            attention = {"attn_implementation": "eager" if plain_attention(device, dtype) else "sdpa"}
            config = CLIPTextConfig(**configs["text_encoder"] | attention)
            encoder: Any = CLIPTextModel(config).float()
            unet, vae = (
                nn.Module.to(kind.from_config(configs[part]), dtype)
                for kind, part in ((UNet2DConditionModel, "unet"), (vae_class, "vae"))
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdvUnlearnError(f"the configuration of model {name!r} could not be read: {error}") from error
    for part in (encoder, unet, vae):
        part.train(False).requires_grad_(False)
    return assembled(name, (tokenizer, encoder, unet, vae, scheduler), device, dtype)


def _config(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
