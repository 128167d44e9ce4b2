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

from .. import miniature
from ..errors import AdvUnlearnError
from ..formats import single_file
from ..formats.text_encoders import hash_encoder
from ..formats.weights import open_weights
from . import Denoiser, DiffusersDenoiser
from .ddim import batch_of
from .encoder_files import part_hashes
from .sdxl_text_encoder import DualTextEncoder
from .text_encoder import embedding_table, encode_prompts

# CLIP's own vocabulary, for checkpoints that bring no tokenizer.
CLIP_TOKENIZER = pathlib.Path(__file__).parents[1] / "data" / "clip_tokenizer"
PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
WRONG = {"missing_keys": "lacks", "unexpected_keys": "has unknown"}  # by the names of a library's report on loading
SECOND = "text_encoder_2"  # of Stable Diffusion XL


@dataclass(frozen=True)
class TextToImage:
    """A latent diffusion model in parts. `denoiser` is the seam: any `Denoiser` will do."""

    name: str
    tokenizer: Any
    text_encoder: Any  # transformers CLIPTextModel, or a DualTextEncoder
    denoiser: Denoiser
    vae: Any

    def encode(self, prompts: Sequence[str], encoder: Any = None) -> Tensor:
        """Return the conditioning (B, L, D) of prompts, under this model's encoder or another one."""
        return encode_prompts(encoder or self.text_encoder, self.tokenizer, prompts, self.denoiser.device)

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
            "base": self.base_hash(),
            "denoiser": self.denoiser.fingerprint(),
            "latent_shape": list(self.denoiser.latent_shape),
        }

    def base_hash(self) -> str:
        """Return the SHA-256 of the text encoder's weights, which tells one base model from another; or of both."""
        if parts := part_hashes(self.text_encoder):
            return hashlib.sha256(" ".join(parts.values()).encode()).hexdigest()
        return hash_encoder(self.text_encoder.state_dict())


def resolve(name: str) -> pathlib.Path:
    """Return where a model is: the shipped miniature, or a diffusers folder or a single file on disk."""
    if name == "miniature":
        return miniature.path()
    path = pathlib.Path(name)
    if path.is_file() and path.suffix in single_file.CHECKPOINT_SUFFIXES:
        return path
    missing = [part for part in PARTS if not (path / part).is_dir()]
    if missing:
        found = "no such folder or file" if not path.exists() else f"it has no {', '.join(missing)}"
        raise AdvUnlearnError(
            f"model {name!r}: {found}; give 'miniature', a diffusers folder with {', '.join(PARTS)}, or a checkpoint "
            f"({', '.join(single_file.CHECKPOINT_SUFFIXES)})"
        )
    return path


def load(
    name: str = "miniature",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction_type: str = "auto",
) -> TextToImage:
    """Load a model from disk, never from a hub.

    The text encoder, which trains, has fp32 weights and computes in bf16 where `dtype` is that; the frozen UNet and
    autoencoder are in `dtype`, SDXL's autoencoder in fp32 where that is fp16 and it would overflow.

    Args:
        name: 'miniature', a diffusers folder of the kind of Stable Diffusion 1.x or XL, or a single-file checkpoint of
            Stable Diffusion 1.x.
        device: where to put it.
        dtype: of the frozen parts.
        prediction_type: 'epsilon' or 'v_prediction'; 'auto' is what the folder's scheduler, or the file, says.

    Raises AdvUnlearnError when it is no such model, and says what it is.
    """
    path = resolve(name)
    attention: dict[str, Any] = {"attn_implementation": "eager"} if plain_attention(device, dtype) else {}
    try:
        read = _from_file if path.is_file() else _from_folder
        tokenizer, encoder, unet, vae, scheduler = read(path, dtype, prediction_type, attention)
    except AdvUnlearnError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise AdvUnlearnError(f"model {name!r} could not be read: {error}") from error
    width = embedding_table(encoder).shape[1]
    if unet.config.cross_attention_dim != width:
        raise AdvUnlearnError(
            f"model {name!r}: its UNet takes {unet.config.cross_attention_dim} wide conditioning and its text encoding "
            f"is {width} wide; only models of the style of Stable Diffusion 1.x and XL work"
        )
    parts: tuple[nn.Module, ...] = (encoder, unet, vae)
    for part in parts:
        part.to(device).train(False).requires_grad_(False)
    return assembled(name, (tokenizer, encoder, unet, vae, scheduler), device, dtype)


def _from_folder(
    folder: pathlib.Path, dtype: torch.dtype, prediction_type: str, attention: dict[str, Any]
) -> tuple[Any, ...]:
    """Return a diffusers folder's `PARTS`."""
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    vae_class = AutoencoderTiny if "Tiny" in (folder / "vae" / "config.json").read_text() else AutoencoderKL
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = _part(CLIPTextModel, folder / "text_encoder", **attention).float()
    if (folder / SECOND).is_dir():
        padding = CLIPTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True).pad_token_id
        encoder = DualTextEncoder(
            encoder, _part(CLIPTextModelWithProjection, folder / SECOND, **attention).float(), padding
        )
    unet, vae = (
        _part(kind, folder / part, ("missing_keys", "unexpected_keys"), torch_dtype=dtype)
        for kind, part in ((UNet2DConditionModel, "unet"), (vae_class, "vae"))
    )
    chosen = {} if prediction_type == "auto" else {"prediction_type": prediction_type}
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True, **chosen)
    return tokenizer, encoder, unet, nn.Module.to(vae, vae_dtype(vae, encoder, dtype)), scheduler


def vae_dtype(vae: Any, encoder: Any, dtype: torch.dtype) -> torch.dtype:
    """Return what the autoencoder computes in: SDXL's own overflows in fp16, and its configuration says so.

    That of other models says so too, without need.
    """
    upcast = isinstance(encoder, DualTextEncoder) and dtype == torch.float16 and vae.config.get("force_upcast")
    return torch.float32 if upcast else dtype


def _part(kind: Any, folder: pathlib.Path, wrong: Sequence[str] = ("missing_keys",), **how: Any) -> Any:
    """Return a part of a model's folder. Raises AdvUnlearnError for tensors that are `wrong`, of those in `WRONG`."""
    part, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **how)
    for fault in wrong:
        if names := info[fault]:
            raise AdvUnlearnError(
                f"model {str(folder.parent)!r}: its {folder.name} {WRONG[fault]} {len(names)} tensors, first "
                f"{min(names)!r}; it would not draw what it was trained to: save or fetch that folder anew"
            )
    return part


def _from_file(
    path: pathlib.Path, dtype: torch.dtype, prediction_type: str, attention: dict[str, Any]
) -> tuple[Any, ...]:
    """Return a single-file checkpoint's `PARTS`, with CLIP's own tokenizer."""
    from diffusers import DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    with open_weights(path) as weights:
        configs = single_file.infer_configs(weights, prediction_type)
        states = single_file.read_states(weights, configs)
    encoder: Any = CLIPTextModel.from_pretrained(
        None, config=CLIPTextConfig(**configs["text_encoder"], **attention), state_dict=states["text_encoder"]
    )
    unet, vae = single_file.build_meta_modules(configs)
    for part, state in ((unet, states["unet"]), (vae, states["vae"])):
        part.load_state_dict({k: v.to(dtype) for k, v in state.items()}, assign=True)
    tokenizer = CLIPTokenizer.from_pretrained(CLIP_TOKENIZER, local_files_only=True)
    return tokenizer, encoder.float(), unet, vae, DDIMScheduler.from_config(configs["scheduler"])


def plain_attention(device: str | torch.device, dtype: torch.dtype) -> bool:
    """Return whether attention is done by plain matrix products.

    On CPUs in bf16 the fused one is slow backwards: 2.2 times their time.
    """
    return torch.device(device).type == "cpu" and dtype == torch.bfloat16


def assembled(name: str, parts: tuple[Any, ...], device: str | torch.device, dtype: torch.dtype) -> TextToImage:
    """Return a model of its `PARTS`: what frozen parts compute in is the encoder's too, and attention as it is fast.

    Raises AdvUnlearnError for a UNet or a schedule of another kind.
    """
    tokenizer, encoder, unet, vae, scheduler = parts
    encoder.compute_dtype = dtype
    if plain_attention(device, dtype):
        from diffusers.models.attention_processor import AttnProcessor

        unet.set_attn_processor(AttnProcessor())
    try:
        denoiser = DiffusersDenoiser(unet, scheduler)
    except AdvUnlearnError as error:
        raise AdvUnlearnError(f"model {name!r}: {error}") from error
    return TextToImage(name, tokenizer, encoder, denoiser, vae)


def best_device() -> str:
    """Return cuda, mps or cpu, the first that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
