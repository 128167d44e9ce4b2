"""The adapter between ComfyUI's MODEL and the library: gradients, predictions, progress and cancel.

The user's MODEL and CLIP are never changed: a copy of the encoder is trained, and the frozen parts are only read.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn

from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.files import CLIP_TOKENIZER
from ..advunlearn.formats.detect import CLIP_G_WIDTH
from ..advunlearn.models.denoiser import fingerprint, scaled_gradients
from ..advunlearn.models.loading import TextToImage
from ..advunlearn.models.sdxl_text_encoder import split_conditioning
from .text_encoders import is_sdxl, make_text_encoder

SDXL_RESOLUTION = 1024
LATENT_CHANNELS = 4


@contextlib.contextmanager
def enable_gradients() -> Iterator[None]:
    """Context with gradients: the host runs every node in `torch.inference_mode()`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def allow_autograd(module: nn.Module) -> None:
    """Replace inference tensors among a module's weights by clones.

    The host loads weights in inference mode, and autograd refuses to save such tensors for the backward pass.
    """
    for child in module.modules():
        for name, weight in child._parameters.items():
            if weight is not None and weight.is_inference():
                child._parameters[name] = nn.Parameter(weight.clone(), requires_grad=False)
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.is_inference():
                child._buffers[name] = buffer.clone()
    module.requires_grad_(False)


class HostDenoiser:
    """A MODEL as the library's `Denoiser`: any dtype, noise or v prediction, including its LoRAs and patches.

    Every prediction raises the host's exception if the user pressed cancel.

    Args:
        model: the host's MODEL.
        latent_size: height and width of the latents.
        dtype: dtype of the computation; None: the host's choice.

    Raises AdvUnlearnError if the model is no text-to-image model of Stable Diffusion 1.x or XL.
    """

    def __init__(self, model: Any, latent_size: int, dtype: torch.dtype | None = None) -> None:
        check_model(model)
        try:
            self.patcher = model.clone(disable_dynamic=True) if getattr(model, "is_dynamic", bool)() else model.clone()
        except RuntimeError as error:
            raise AdvUnlearnError(
                f"dynamic memory management cannot be turned off for this MODEL ({error}); load it with Load "
                "Checkpoint, or start ComfyUI with --disable-dynamic-vram"
            ) from error
        if dtype is not None:  # only of the clone; the host's ModelComputeDtype node does the same
            self.patcher.set_model_compute_dtype(dtype)
        self.sampling = model.get_model_object("model_sampling")
        self.latent_shape = (model.model.latent_format.latent_channels, latent_size, latent_size)
        with torch.inference_mode(False):
            self.alphas_cumprod = (1 / (1 + self.sampling.sigmas.detach().cpu().double() ** 2)).float()
        self.options = dict(model.model_options.get("transformer_options", {}))
        self.pooled = CLIP_G_WIDTH if is_sdxl_model(model) else 0  # width of the pooled vector in the conditioning
        self.on_predict: Callable[[], None] = lambda: None  # called before every prediction: a sign of life

    @torch.no_grad()
    def load(self, room: int = 0) -> None:
        """Load the weights onto the device, if they are not there already, with `room` bytes of free memory."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=room, force_full_load=True)
        allow_autograd(self.patcher.model)

    @property
    def device(self) -> torch.device:
        """The device on which the host computes."""
        return self.patcher.load_device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation; valid after `load`."""
        return self.patcher.model.manual_cast_dtype or self.patcher.model.get_dtype()

    def modules(self) -> tuple[nn.Module, ...]:
        """Return (): the host manages the memory of its weights itself."""
        return ()

    def blocks(self) -> tuple[nn.Module, ...]:
        """Return the UNet's residual and attention blocks."""
        return tuple(m for m in self.patcher.model.modules() if isinstance(m, ResBlock | SpatialTransformer))

    def with_modules(self, make: Callable[[nn.Module], nn.Module]) -> HostDenoiser:
        """Return a denoiser that predicts with make(the MODEL's module), which the host neither loads nor moves."""
        other = copy.copy(self)
        module = make(self.patcher.model)
        other.patcher = SimpleNamespace(model=module, load_device=next(module.parameters()).device)
        return other

    def fingerprint(self) -> str:
        """Return a string that identifies the MODEL's weights, LoRAs included, and its dtype."""
        return f"{fingerprint(self.patcher.model)} {self.dtype}"

    def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """See `Denoiser.noise_pred`. The host uses x = x_t / sqrt(a) and sigma = sqrt((1 - a) / a).

        `apply_model` returns the denoised x_0 for noise and v prediction alike, hence eps = (x - x_0) / sigma.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.on_predict()
        model = self.patcher.model
        sigma = self.sampling.sigma(t).to(x_t)
        s = sigma.view(-1, 1, 1, 1)
        x = x_t * (1 + s**2).sqrt()
        options = {**self.options, "cond_or_uncond": [0], "sigmas": sigma}

        def predict(context: Tensor) -> Tensor:
            extra = {}
            if self.pooled:
                context, pooled = split_conditioning(context, self.pooled)
                height, width = (8 * side for side in x_t.shape[-2:])
                # As the host's sampler does for a latent: its size as original and target size, no crop.
                extra = {"y": model.encode_adm(pooled_output=pooled, width=width, height=height).to(x.device)}
            return (x - model.apply_model(x, sigma, c_crossattn=context, transformer_options=options, **extra)) / s

        return scaled_gradients(conditioning, predict, self.dtype)


def is_sdxl_model(model: Any) -> bool:
    """Return whether a MODEL is SDXL or has its conditioning, as SSD-1B, Segmind Vega and KOALA have."""
    width = model.model.model_config.unet_config.get("context_dim")
    return isinstance(model.model, comfy.model_base.SDXL) and width == 2048


def check_model(model: Any) -> None:
    """Raise AdvUnlearnError unless a MODEL is a text-to-image model of Stable Diffusion 1.x or XL."""
    base = model.model
    config = base.model_config.unet_config
    width = config.get("context_dim")
    if not is_sdxl_model(model) and (width != 768 or getattr(base, "adm_channels", 0)):
        raise AdvUnlearnError(
            f"this MODEL is of the class {type(base).__name__}, its conditioning {width} wide; only Stable Diffusion "
            "1.x (768) and SDXL (2048) can be trained and attacked"
        )
    if config.get("in_channels", LATENT_CHANNELS) != LATENT_CHANNELS or getattr(base, "concat_keys", ()):
        kind = "an inpainting" if getattr(base, "concat_keys", ()) else "an image editing"
        raise AdvUnlearnError(f"this MODEL is {kind} model; use the text-to-image model that it was made from")
    _require_discrete(model.get_model_object("model_sampling"))
    if model.model_options.get("model_function_wrapper") is not None:
        raise AdvUnlearnError("another node wraps the predictions of this MODEL; connect the MODEL before that node")


def _require_discrete(sampling: Any) -> None:
    """Raise AdvUnlearnError unless a MODEL's sampling is the discrete schedule with noise or v prediction."""
    with torch.inference_mode(False):
        sigmas = getattr(sampling, "sigmas", torch.zeros(0)).detach().clone()
        steps = torch.arange(len(sigmas), device=sigmas.device)
        discrete = isinstance(sampling, comfy.model_sampling.EPS) and len(sigmas) == 1000
        if discrete and torch.allclose(sampling.sigma(steps).to(sigmas), sigmas, rtol=1e-3):
            return
    raise AdvUnlearnError(
        f"this MODEL samples as {' and '.join(each.__name__ for each in type(sampling).__bases__)}; only the "
        "discrete schedule of 1000 steps with noise or v prediction is supported. Connect the MODEL before the node "
        "that changed its sampling, or use the model that it was made from"
    )


def check_pair(model: Any, clip: Any) -> None:
    """Raise AdvUnlearnError if one of MODEL and CLIP is SDXL's and the other one is not."""
    kinds = ["SDXL's" if is_xl else "of another family" for is_xl in (is_sdxl_model(model), is_sdxl(clip))]
    if kinds[0] != kinds[1]:
        raise AdvUnlearnError(
            f"this MODEL is {kinds[0]} and this CLIP is {kinds[1]}; connect both from the same checkpoint"
        )


@dataclass(frozen=True)
class HostModel(TextToImage):
    """MODEL, CLIP and VAE as the library's text-to-image model; `vae` is the host's VAE or None."""

    @property
    def resolution(self) -> int:
        """Size of the images in pixels."""
        return 8 * self.denoiser.latent_shape[-1]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) into images (B, 3, H, W) in [0, 1] with the host's VAE."""
        unscaled = self.denoiser.patcher.model.process_latent_out(latents)  # type: ignore[attr-defined]
        images = self.vae.decode(unscaled).movedim(-1, 1)
        self.denoiser.load()  # type: ignore[attr-defined]  # the VAE may have taken its place on the device
        return images.clone()  # no inference tensor

    def vae_state(self) -> dict[str, Tensor]:
        """Return the weights of the host's VAE, which is no module; {} without one."""
        return self.vae.get_sd() if self.vae is not None else {}  # type: ignore[no-any-return]

    @torch.no_grad()
    def look(self, latents: Tensor) -> Tensor:
        """Return previews (B, 3, H, W) of latents; without a VAE by the host's latent-to-RGB factors."""
        if self.vae is not None:
            return self.decode(latents)
        latent_format = self.denoiser.patcher.model.latent_format  # type: ignore[attr-defined]
        factors = torch.tensor(latent_format.latent_rgb_factors, device=latents.device)
        bias = torch.tensor(getattr(latent_format, "latent_rgb_factors_bias", None) or [0.0] * 3, device=latents.device)
        colours = torch.einsum("bchw,ck->bkhw", latents.float(), factors) + bias.view(1, 3, 1, 1)
        return (colours / 2 + 0.5).clamp(0, 1)


def is_miniature(model: Any) -> bool:
    """Return whether a MODEL is the miniature, as its checkpoint for this host has it."""
    from ..advunlearn.miniature import fingerprint

    bias = model.model.diffusion_model.input_blocks[0][0].bias
    return bias is not None and fingerprint.matches_miniature(bias)


def own_resolution(model: Any) -> int:
    """Return the size in pixels of the images that a MODEL was made for."""
    from ..advunlearn.memory.plan import PUBLISHED_RESOLUTION
    from ..advunlearn.miniature import fingerprint

    if is_miniature(model):
        return fingerprint.RESOLUTION
    return SDXL_RESOLUTION if is_sdxl_model(model) else PUBLISHED_RESOLUTION


def make_model(
    model: Any, clip: Any, vae: Any = None, resolution: int = 0, dtype: torch.dtype | None = None
) -> HostModel:
    """Make the library's text-to-image model of the user's MODEL, CLIP and VAE.

    Args:
        model, clip, vae: the host's objects; they are not changed.
        resolution: image size in pixels, 8 per latent (0: the model's own).
        dtype: dtype in which the UNet computes; None: the host's choice.

    A CLIP that stops before its last layer (CLIP Set Last Layer) is taken as it is. Raises AdvUnlearnError for a model
    of another kind.
    """
    from transformers import CLIPTokenizer

    check_model(model)
    check_pair(model, clip)
    denoiser = HostDenoiser(model, (resolution or own_resolution(model)) // 8, dtype)
    encoder = make_text_encoder(clip, denoiser.device)
    denoiser.load()  # last, so that loading the encoder cannot unload it again
    return HostModel("host", CLIPTokenizer.from_pretrained(CLIP_TOKENIZER), encoder, denoiser, vae)


def make_other_encoder(model: HostModel, clip: Any) -> Any:
    """Return the encoder of another CLIP for an adapted model. Raises AdvUnlearnError for a CLIP of another family."""
    check_pair(model.denoiser.patcher, clip)  # type: ignore[attr-defined]
    return make_text_encoder(clip, model.denoiser.device)


@torch.no_grad()
def encode_target(
    attacked: HostModel, original: Any, prompt: str, config: Any, latent: Any, image: Any, vae: Any
) -> Tensor:
    """Return target latents (1, C, h, w) in the UNet's scale.

    They come from the LATENT, from the IMAGE and the VAE, or else from sampling the prompt with the original encoder
    (with the attacked one if there is no original).

    Raises AdvUnlearnError for an image without a VAE.
    """
    from ..advunlearn.models.ddim import ddim_sample

    denoiser = attacked.denoiser
    if latent is None and image is not None:
        if vae is None:
            raise AdvUnlearnError("image is connected but vae is not; connect the VAE that encodes it")
        latent = {"samples": vae.encode(image[:1, :, :, :3].clone())}
        denoiser.load()  # type: ignore[attr-defined]
    if latent is not None:
        samples = latent["samples"][:1].clone()
        return denoiser.patcher.model.process_latent_in(samples).float().to(denoiser.device)  # type: ignore[attr-defined]
    encoder = original or attacked.text_encoder
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(1, *denoiser.latent_shape, generator=generator).to(denoiser.device)
    context, empty = attacked.encode([prompt], encoder), attacked.encode([""], encoder)
    return ddim_sample(denoiser, context, empty, noise, config.sampling_steps, config.guidance_scale)


PREVIEW_SIZE = 1024  # pixels, above which the host scales a preview down


class Bar:
    """The progress bar of a node. Every update raises the host's exception if the user pressed cancel."""

    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.bar, self.done, self.total = comfy.utils.ProgressBar(total, node_id=node_id), 0, total

    def update(self, done: int, preview: Any = None) -> None:
        """Show `done` of the total and, if given, a PIL image on the node."""
        self.done = done
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, self.total, None if preview is None else ("JPEG", preview, PREVIEW_SIZE))


def to_image(image: Any) -> Tensor:
    """Convert a PIL image to the host's IMAGE (1, H, W, 3) in [0, 1]."""
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(1, image.height, image.width, 3).float() / 255
