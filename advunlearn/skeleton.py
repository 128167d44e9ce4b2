"""A model from its configuration files alone: every layer and shape, no weights."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
from torch import nn

from .denoisers import DiffusersDenoiser
from .errors import AdvUnlearnError
from .models import CLIP_TOKENIZER, TextToImage, resolve

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
        # As `models.load` does: no fused attention on CPUs in bf16.
        plain = device.type == "cpu" and dtype == torch.bfloat16
        with torch.device("meta"):
            attention = {"attn_implementation": "eager" if plain else "sdpa"}
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
    encoder.compute_dtype = dtype
    if plain:
        from diffusers.models.attention_processor import AttnProcessor

        unet.set_attn_processor(AttnProcessor())
    return TextToImage(name, tokenizer, encoder, DiffusersDenoiser(unet, scheduler), vae)


def _config(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
