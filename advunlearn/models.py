"""Load a text-to-image model into the parts the method works on."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from . import miniature
from .denoisers import Denoiser, DiffusersDenoiser
from .errors import AdvUnlearnError
from .sampling import batch_of
from .text_encoder import encode, tokenize

# CLIP's own vocabulary, for checkpoints that bring no tokenizer.
CLIP_TOKENIZER = pathlib.Path(__file__).parent / "clip_tokenizer"
PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")


@dataclass(frozen=True)
class TextToImage:
    """A latent diffusion model in parts. `denoiser` is the seam: any `Denoiser` will do."""

    name: str
    tokenizer: Any
    text_encoder: Any  # transformers CLIPTextModel
    denoiser: Denoiser
    vae: Any

    def encode(self, prompts: Sequence[str], encoder: Any = None) -> Tensor:
        """Return the conditioning (B, L, D) of prompts, under this model's encoder or another one."""
        ids = tokenize(self.tokenizer, prompts).to(self.denoiser.device)
        with torch.no_grad():
            return torch.cat([encode(encoder or self.text_encoder, part) for part in ids.split(128)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (B, C, h, w) into pictures (B, 3, H, W) in [0, 1]."""
        scaled = latents / self.vae.config.scaling_factor
        parts = scaled.split(batch_of(64, latents))
        rows = [self.vae.decode(part.to(self.vae.dtype)).sample.float() for part in parts]
        return (torch.cat(rows) / 2 + 0.5).clamp(0, 1)

    def fingerprints(self) -> dict[str, Any]:
        """Return what tells this model from another: a run goes on only with the one it began with."""
        return {
            "base": self.base_hash(), "denoiser": self.denoiser.fingerprint(),
            "latent_shape": list(self.denoiser.latent_shape),
        }  # fmt: skip

    def base_hash(self) -> str:
        """Return the SHA-256 of the text encoder's weights, which tells one base model from another."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.text_encoder.state_dict().items()):
            digest.update(name.removeprefix("text_model.").encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()


def resolve(name: str) -> pathlib.Path:
    """Return the folder of a model: the shipped miniature, or a diffusers folder on disk."""
    if name == "miniature":
        return miniature.path()
    folder = pathlib.Path(name)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        found = "no such folder" if not folder.is_dir() else f"it has no {', '.join(missing)}"
        raise AdvUnlearnError(
            f"model {name!r}: {found}; give 'miniature' or a diffusers folder with {', '.join(PARTS)}"
        )
    return folder


def load(
    name: str = "miniature", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> TextToImage:
    """Load a model from disk, never from a hub.

    The text encoder, which trains, has fp32 weights and computes in bf16 where `dtype` is that; the frozen UNet and
    autoencoder are in `dtype`.
    Raises AdvUnlearnError when the folder is not a Stable Diffusion 1.x style diffusers model.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = resolve(name)
    attention: dict[str, Any] = {"attn_implementation": "eager"} if plain_attention(device, dtype) else {}
    try:
        vae_class = AutoencoderTiny if "Tiny" in (folder / "vae" / "config.json").read_text() else AutoencoderKL
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        loaded: Any = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            local_files_only=True,
            output_loading_info=True,
            **attention,
        )
        encoder, loading = loaded[0].float(), loaded[1]
        unet, vae = (
            kind.from_pretrained(folder / part, torch_dtype=dtype, local_files_only=True)
            for kind, part in ((UNet2DConditionModel, "unet"), (vae_class, "vae"))
        )
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise AdvUnlearnError(f"model {name!r} could not be read: {error}") from error
    if loading["missing_keys"]:
        raise AdvUnlearnError(
            f"model {name!r}: its text encoder lacks {len(loading['missing_keys'])} tensors, first "
            f"{min(loading['missing_keys'])!r}; they would be random"
        )
    if unet.config.addition_embed_type or unet.config.cross_attention_dim != encoder.config.hidden_size:
        raise AdvUnlearnError(
            f"model {name!r}: its UNet takes {unet.config.cross_attention_dim} wide conditioning and its text encoder "
            f"gives {encoder.config.hidden_size}; only Stable Diffusion 1.x style models work"
        )
    parts: tuple[nn.Module, ...] = (encoder, unet, vae)
    for part in parts:
        part.to(device).train(False).requires_grad_(False)
    return assembled(name, (tokenizer, encoder, unet, vae, scheduler), device, dtype)


def plain_attention(device: str | torch.device, dtype: torch.dtype) -> bool:
    """Return whether attention is done by plain matrix products.

    On CPUs in bf16 the fused one is slow backwards: 2.2 times their time.
    """
    return torch.device(device).type == "cpu" and dtype == torch.bfloat16


def assembled(name: str, parts: tuple[Any, ...], device: str | torch.device, dtype: torch.dtype) -> TextToImage:
    """Return a model of its `PARTS`: what frozen parts compute in is the encoder's too, and attention as it is fast."""
    tokenizer, encoder, unet, vae, scheduler = parts
    encoder.compute_dtype = dtype
    if plain_attention(device, dtype):
        from diffusers.models.attention_processor import AttnProcessor

        unet.set_attn_processor(AttnProcessor())
    return TextToImage(name, tokenizer, encoder, DiffusersDenoiser(unet, scheduler), vae)


def best_device() -> str:
    """Return cuda, mps or cpu, the first that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
