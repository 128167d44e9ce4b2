"""Load a text-to-image model into the parts that the method works on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import miniature
from ..config.io import LongPrompts
from ..errors import AdvUnlearnError, shorten_error
from ..files import CLIP_TOKENIZER, TEXT_ENCODER_WEIGHTS, UNET_WEIGHTS
from ..formats import single_file
from ..formats.single_file import SECOND_TEXT_ENCODER
from ..formats.supported import require_many_steps, require_schedule
from ..formats.text_encoders import ConfigDict
from ..formats.weights import find_snapshot, find_weights_file, open_weights
from .ddim import scale_batch
from .denoiser import Denoiser
from .diffusers_denoiser import DiffusersDenoiser
from .encoder_files import part_hashes
from .placement import on_device, uses_plain_attention
from .prompt_tokens import fit_tokenizer
from .sdxl_text_encoder import DualTextEncoder
from .text_encoder import embedding_table, encode_prompts, encoder_parts, get_clip_skip, set_clip_skip
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

SUBFOLDERS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")  # of a diffusers folder
# How an error names the entries of `output_loading_info`.
LOADING_FAULTS = {"missing_keys": "lacks", "unexpected_keys": "has unknown"}


class Components(NamedTuple):
    """The parts of a model, as diffusers and transformers load them."""

    tokenizer: Tokenizer
    text_encoder: nn.Module
    unet: Any  # a UNet2DConditionModel; diffusers' configurations have no types
    vae: Any  # an AutoencoderKL or AutoencoderTiny
    scheduler: DDIMScheduler


@dataclass(frozen=True)
class TextToImage:
    """A latent diffusion model in parts. The denoiser is a diffusers UNet or a host's model."""

    name: str
    tokenizer: Tokenizer
    text_encoder: nn.Module  # a transformers CLIPTextModel, or a DualTextEncoder
    denoiser: Denoiser
    vae: Any  # a diffusers autoencoder; a host's own class may decode with another object
    long_prompts: LongPrompts = "chunks"

    def fit_prompts(self, prompts: Sequence[str], inserted: int = 0) -> TextToImage:
        """Return this model for prompts that may be longer than its text encoder reads at once.

        All its conditionings then have as many chunks as the longest prompt needs, see `chunks`; with `long_prompts`
        "cut", or if all prompts fit, the model is the same object.

        Args:
            prompts: all prompts of a run.
            inserted: number of adversarial tokens that are inserted into them.
        """
        tokenizer = self.tokenizer
        if self.long_prompts == "chunks":
            tokenizer = fit_tokenizer(tokenizer, prompts, inserted)
        return self if tokenizer is self.tokenizer else replace(self, tokenizer=tokenizer)

    def encode(self, prompts: Sequence[str], encoder: nn.Module | None = None) -> Tensor:
        """Return the conditioning (B, L, D) of prompts by this model's encoder or another one."""
        return encode_prompts(encoder or self.text_encoder, self.tokenizer, prompts, self.denoiser.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) to images (B, 3, H, W) in [0, 1]."""
        scaled = latents / self.vae.config.scaling_factor
        batches = scaled.split(scale_batch(64, latents))
        with on_device([self.vae], latents.device):
            images = [self.vae.decode(batch.to(self.vae.dtype)).sample.float() for batch in batches]
        return (torch.cat(images) / 2 + 0.5).clamp(0, 1)

    def vae_state(self) -> dict[str, Tensor]:
        """Return the autoencoder's weights; {} without one that has any."""
        return self.vae.state_dict() if isinstance(self.vae, nn.Module) else {}

    def fingerprints(self) -> dict[str, object]:
        """Return the values that identify this model; a run resumes only with the model it started with."""
        clip_skip = get_clip_skip(self.text_encoder)
        return {
            "base": self.base_hash(),
            "denoiser": self.denoiser.fingerprint(),
            "latent_shape": list(self.denoiser.latent_shape),
            **({"clip_skip": clip_skip} if clip_skip else {}),
        }

    def base_hash(self) -> str:
        """Return the SHA-256 of the text encoder's weights, or of two encoders' hashes. It identifies the model."""
        hashes = list(part_hashes(self.text_encoder).values())
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def find_model(name: str) -> pathlib.Path:
    """Return the path of a model: the shipped miniature, or a diffusers folder or a single file on disk.

    Raises AdvUnlearnError when none of them is found.
    """
    if name == "miniature":
        return miniature.path()
    path = find_snapshot(pathlib.Path(name))
    if path.is_file() and path.suffix.lower() in single_file.CHECKPOINT_SUFFIXES:
        return path
    missing = [part for part in SUBFOLDERS if not (path / part).is_dir()]
    if missing:
        found = "no such folder or file" if not path.exists() else f"it has no {', '.join(missing)}"
        raise AdvUnlearnError(
            f"model {name!r}: {found}; give 'miniature', a diffusers folder with {', '.join(SUBFOLDERS)}, or a "
            f"checkpoint ({', '.join(single_file.CHECKPOINT_SUFFIXES)})"
        )
    return path


def load(
    name: str = "miniature",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction_type: str = "auto",
    clip_skip: int = 0,
    long_prompts: LongPrompts = "chunks",
) -> TextToImage:
    """Load a model from disk; nothing is downloaded.

    The text encoder, which trains, has fp32 weights and computes in bf16 if that is `dtype`. The frozen UNet and
    autoencoder have `dtype`, except that SDXL's autoencoder, which overflows in fp16, is in fp32 instead.

    Args:
        name: 'miniature', or a diffusers folder or a single-file checkpoint of Stable Diffusion 1.x or XL.
        device: device of the model.
        dtype: dtype of the frozen parts.
        prediction_type: 'epsilon' or 'v_prediction'; 'auto': read it from the folder's scheduler or the file.
        clip_skip: layers to skip at the end of Stable Diffusion 1.x's text encoder; see `set_clip_skip`.
        long_prompts: 'chunks' or 'cut': see `TextToImage.fit_prompts`.

    Raises AdvUnlearnError, which names the kind of model found, for any other model.
    """
    path = find_model(name)
    attention = "eager" if uses_plain_attention(device, dtype) else None
    try:
        read = _read_file if path.is_file() else _read_folder
        parts = read(path, dtype, prediction_type, attention)
    except AdvUnlearnError:
        raise
    except Exception as error:  # diffusers and transformers raise anything for a damaged folder
        raise AdvUnlearnError(f"model {name!r} could not be read: {shorten_error(error)}") from error
    width = embedding_table(parts.text_encoder).shape[1]
    if parts.unet.config.cross_attention_dim != width:
        raise AdvUnlearnError(
            f"model {name!r}: its UNet takes {parts.unet.config.cross_attention_dim} wide conditioning and its text "
            f"encoding is {width} wide; only models like Stable Diffusion 1.x and XL are supported"
        )
    set_clip_skip(parts.text_encoder, clip_skip)
    return replace(assemble(name, parts, device, dtype), long_prompts=long_prompts)


def _read_folder(folder: pathlib.Path, dtype: torch.dtype, prediction_type: str, attention: str | None) -> Components:
    """Read a diffusers folder."""
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from diffusers.utils import is_accelerate_available

    require_many_steps(str(folder))
    require_schedule(read_config(folder / "scheduler"), str(folder))
    vae_config = (folder / "vae" / "config.json").read_text(encoding="utf-8")
    vae_class = AutoencoderTiny if "Tiny" in vae_config else AutoencoderKL
    encoder = _read_text_encoder(folder, attention)
    tokenizer = read_tokenizer(folder / "tokenizer", encoder)
    faults = ("missing_keys", "unexpected_keys")
    # True without accelerate makes diffusers print a warning.
    options = {"torch_dtype": dtype, "low_cpu_mem_usage": is_accelerate_available()}
    unet = _read_part(UNet2DConditionModel, folder / "unet", faults, **options)
    vae = _read_part(vae_class, folder / "vae", faults, **options)
    vae_dtype = choose_vae_dtype(vae, encoder, dtype)
    changes = {} if prediction_type == "auto" else {"prediction_type": prediction_type}
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True, **changes)
    return Components(tokenizer, encoder, unet, nn.Module.to(vae, vae_dtype), scheduler)


def read_config(folder: pathlib.Path) -> ConfigDict:
    """Return the configuration of a component in its folder of diffusers."""
    name = "scheduler_config.json" if folder.name == "scheduler" else "config.json"
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _read_text_encoder(folder: pathlib.Path, attention: str | None) -> nn.Module:
    """Read the text encoder of a diffusers folder, or both of Stable Diffusion XL."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    options = {"attn_implementation": attention} if attention else {}
    with _without_progress_bar():
        encoder = _read_part(CLIPTextModel, folder / "text_encoder", **options).float()
        if not (folder / SECOND_TEXT_ENCODER).is_dir():
            return encoder
        second = _read_part(CLIPTextModelWithProjection, folder / SECOND_TEXT_ENCODER, **options).float()
    padding = CLIPTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True).pad_token_id
    return DualTextEncoder(encoder, second, padding)


def _read_part(kind: Any, folder: pathlib.Path, faults: Sequence[str] = ("missing_keys",), **options: object) -> Any:
    """Read a part of a model with `kind.from_pretrained`.

    Raises AdvUnlearnError when the loader reports one of the `faults` (keys of `LOADING_FAULTS`).
    """
    variant = check_part(folder)
    options |= {"variant": variant} if variant else {}
    part, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    for fault in faults:
        if names := info[fault]:
            raise AdvUnlearnError(
                f"model {str(folder.parent)!r}: its {folder.name} {LOADING_FAULTS[fault]} {len(names)} tensors, first "
                f"{min(names)!r}; its images would be wrong; save or download that folder again"
            )
    return part


def check_part(folder: pathlib.Path) -> str:
    """Read all weights of a part of a diffusers folder once, before another library does.

    Returns the variant of its files, such as 'fp16' of model.fp16.safetensors; "" for files without one.
    Raises AdvUnlearnError for a file that `open_weights` refuses, and for the first tensor with a NaN or an infinity.
    """
    advice = "a complete diffusers folder"
    file = find_weights_file(folder, (*TEXT_ENCODER_WEIGHTS, *UNET_WEIGHTS), (), advice)
    with open_weights(file) as weights:
        for name in sorted(weights.names):
            weights.copy(name)
    variant = re.search(r"\.(\w+)\.(?:json|safetensors|bin)$", file.name.replace(".index.json", ".json"))
    return variant[1] if variant and variant[1] not in ("safetensors", "bin") else ""


def read_tokenizer(folder: pathlib.Path, encoder: nn.Module) -> Any:
    """Read a CLIP tokenizer; one that states no length, or a longer one, gets that of the text encoder."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    config: Any = next(iter(encoder_parts(encoder).values())).config
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return tokenizer


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Turn off transformers' progress bar, which its loaders have no argument for."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _read_file(path: pathlib.Path, dtype: torch.dtype, prediction_type: str, attention: str | None) -> Components:
    """Read a single-file checkpoint; the tokenizer is the shipped one of CLIP."""
    from diffusers import DDIMScheduler

    with open_weights(path) as weights:
        configs = single_file.infer_configs(weights, prediction_type)
        states = single_file.read_states(weights, configs)
    encoder = _make_text_encoder(configs, states, attention)
    unet, vae = single_file.build_meta_modules(configs)
    dtypes = {"unet": dtype, "vae": choose_vae_dtype(vae, encoder, dtype)}
    for part, name in ((unet, "unet"), (vae, "vae")):
        part.load_state_dict({k: v.to(dtypes[name]) for k, v in states.pop(name).items()}, assign=True)
    tokenizer = read_tokenizer(CLIP_TOKENIZER, encoder)
    return Components(tokenizer, encoder, unet, vae, DDIMScheduler.from_config(configs["scheduler"]))


def _make_text_encoder(
    configs: Mapping[str, ConfigDict], states: dict[str, dict[str, Tensor]], attention: str | None
) -> nn.Module:
    """Return the text encoder of a checkpoint, or both of Stable Diffusion XL, in fp32; take their tensors away."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    options = {"attn_implementation": attention} if attention else {}

    def make(kind: Any, part: str) -> Any:
        config = CLIPTextConfig(**{**configs[part], **options})
        with _without_progress_bar():
            return kind.from_pretrained(None, config=config, state_dict=states.pop(part)).float()

    first = make(CLIPTextModel, "text_encoder")
    if SECOND_TEXT_ENCODER not in configs:
        return first
    return DualTextEncoder(first, make(CLIPTextModelWithProjection, SECOND_TEXT_ENCODER))


def choose_vae_dtype(vae: Any, encoder: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the autoencoder: fp32 for SDXL's in a model of fp16, otherwise `dtype`.

    SDXL's autoencoder overflows in fp16, which its configuration states. Other models' configurations state the same
    although they need no fp32.
    """
    upcast = len(encoder_parts(encoder)) > 1 and dtype == torch.float16 and vae.config.get("force_upcast")
    return torch.float32 if upcast else dtype


def assemble(name: str, parts: Components, device: str | torch.device, dtype: torch.dtype) -> TextToImage:
    """Return a model of the parts, frozen; parts on the meta device stay there.

    Raises AdvUnlearnError for a UNet or a scheduler that `DiffusersDenoiser` does not support.
    """
    encoder = parts.text_encoder
    for part in (encoder, parts.unet, parts.vae):
        if next(part.parameters()).device.type != "meta":
            part.to(device)
        part.train(False).requires_grad_(False)
    encoder.compute_dtype = dtype  # type: ignore[assignment]
    if uses_plain_attention(device, dtype):
        from diffusers.models.attention_processor import AttnProcessor

        parts.unet.set_attn_processor(AttnProcessor())
    try:
        denoiser = DiffusersDenoiser(parts.unet, parts.scheduler)
    except AdvUnlearnError as error:
        raise AdvUnlearnError(f"model {name!r}: {error}") from error
    return TextToImage(name, parts.tokenizer, encoder, denoiser, parts.vae)
