"""The one adapter between ComfyUI's objects and the library's: the only place that knows how the host works inside.

It never changes the user's MODEL or CLIP: what trains is a copy, and the frozen parts are only read.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn

from ..advunlearn.denoisers.base import fingerprint, scaled_gradients
from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.files import write_atomic
from ..advunlearn.formats import PREFIX, PROJECTION, load_state
from ..advunlearn.models import CLIP_TOKENIZER, TextToImage

CLIP_L = "clip_l.transformer."
FOLDER = "text_encoders"  # models/text_encoders, models/clip and output/clip


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Leave the inference mode that the host runs every node in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def usable_for_gradients(module: nn.Module) -> None:
    """Replace weights that were made in inference mode by equal ones that autograd may save for its backward pass."""
    for child in module.modules():
        for name, weight in child._parameters.items():
            if weight is not None and weight.is_inference():
                child._parameters[name] = nn.Parameter(weight.clone(), requires_grad=False)
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.is_inference():
                child._buffers[name] = buffer.clone()
    module.requires_grad_(False)


class HostDenoiser:
    """A MODEL as the library's `Denoiser`: any dtype, eps or v prediction, with the LoRAs and patches that are on it.

    Every prediction looks whether the user pressed cancel, and raises the host's exception.
    Raises AdvUnlearnError for a model that is not of Stable Diffusion 1.x's kind.
    """

    def __init__(self, model: Any, latent_size: int) -> None:
        check_model(model)
        try:
            self.patcher = model.clone(disable_dynamic=True) if getattr(model, "is_dynamic", bool)() else model.clone()
        except RuntimeError as error:
            raise AdvUnlearnError(
                f"this MODEL cannot be taken out of dynamic memory ({error}); load it with Load Checkpoint, or start "
                "ComfyUI with --disable-dynamic-vram"
            ) from error
        self.sampling = model.get_model_object("model_sampling")
        self.latent_shape = (model.model.latent_format.latent_channels, latent_size, latent_size)
        with torch.inference_mode(False):
            self.alphas_cumprod = (1 / (1 + self.sampling.sigmas.detach().cpu().double() ** 2)).float()
        self.options = dict(model.model_options.get("transformer_options", {}))

    @torch.no_grad()
    def load(self) -> None:
        """Bring the weights to the device; free of work where they are there."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        usable_for_gradients(self.patcher.model)

    @property
    def device(self) -> torch.device:
        """Where the host computes."""
        return self.patcher.load_device

    def modules(self) -> tuple[nn.Module, ...]:
        """Return (): the host takes care of its own weights."""
        return ()

    def fingerprint(self) -> str:
        """Return what tells this MODEL's weights, LoRAs included, from another's."""
        return fingerprint(self.patcher.model)

    def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """See `Denoiser.noise_pred`. The host works with x = x_t / sqrt(a) and sigma = sqrt((1 - a) / a).

        It returns the denoised x_0, for noise and for v prediction alike, so eps = (x - x_0) / sigma.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        model = self.patcher.model
        sigma = self.sampling.sigma(t).to(x_t)
        s = sigma.view(-1, 1, 1, 1)
        x = x_t * (1 + s**2).sqrt()
        options = {**self.options, "cond_or_uncond": [0], "sigmas": sigma}

        def predict(context: Tensor) -> Tensor:
            return (x - model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)) / s

        return scaled_gradients(conditioning, predict, model.manual_cast_dtype or model.get_dtype())


def check_model(model: Any) -> None:
    """Raise AdvUnlearnError unless a MODEL is a text-to-image model of Stable Diffusion 1.x's kind."""
    base, sampling = model.model, model.get_model_object("model_sampling")
    width = base.model_config.unet_config.get("context_dim")
    if width != 768 or getattr(base, "adm_channels", 0):
        raise AdvUnlearnError(
            f"this MODEL is a {type(base).__name__} with {width} wide conditioning; only Stable Diffusion 1.x models "
            "(768 wide) can be trained and attacked yet"
        )
    if getattr(base, "concat_keys", ()):
        raise AdvUnlearnError("this MODEL is an inpainting model; use the text-to-image model it was made from")
    with torch.inference_mode(False):
        sigmas = getattr(sampling, "sigmas", torch.zeros(0)).detach().clone()
        steps = torch.arange(len(sigmas), device=sigmas.device)
        discrete = isinstance(sampling, comfy.model_sampling.EPS) and len(sigmas) == 1000
        if not discrete or not torch.allclose(sampling.sigma(steps).to(sigmas), sigmas, rtol=1e-3):
            raise AdvUnlearnError(
                f"this MODEL samples as {type(sampling).__mro__[1].__name__}; only the discrete schedule of 1000 steps "
                "with noise or v prediction is known. Connect the MODEL before the node that changed its sampling"
            )
    if model.model_options.get("model_function_wrapper") is not None:
        raise AdvUnlearnError("another node wraps this MODEL's predictions; connect the MODEL before that node")


@torch.no_grad()
def clip_l_state(clip: Any) -> dict[str, Tensor]:
    """Return CLIP-L's weights in fp32 on the CPU, patches applied, under `text_model.` keys.

    They are computed from the base weights and the patches: what a loaded model holds may be partly offloaded, and a
    state dict of it without its patches. Raises AdvUnlearnError when the CLIP has no CLIP-L.
    """
    require_clip_l(clip)
    state = {}
    for key, (base, *patches) in clip.patcher.get_key_patches(CLIP_L + PREFIX).items():
        if key.endswith("position_ids"):
            continue
        weight, convert = base
        # A copy, since patches are applied in place.
        value = convert(weight.detach().to("cpu", torch.float32, copy=True), inplace=True)
        state[key.removeprefix(CLIP_L)] = comfy.lora.calculate_weight(patches, value, key).detach().clone()
    return state


def require_clip_l(clip: Any) -> None:
    """Raise AdvUnlearnError unless a CLIP has a CLIP-L text encoder in it."""
    if getattr(clip.cond_stage_model, "clip_l", None) is None:
        inside = [name for name, _ in clip.cond_stage_model.named_children()]
        raise AdvUnlearnError(
            f"this CLIP has no CLIP-L text encoder (it has {', '.join(inside) or 'none'}); give the CLIP of a Stable "
            "Diffusion 1.x, SDXL, SD3, Flux or HunyuanVideo model"
        )


def text_encoder(clip: Any, device: torch.device) -> Any:
    """Return a CLIPTextModel in fp32, on a device, that computes what the CLIP-L of a CLIP does."""
    from transformers import CLIPTextConfig, CLIPTextModel

    state = clip_l_state(clip)
    layers = 1 + max(int(k.split("layers.")[1].split(".")[0]) for k in state if "layers." in k)
    vocabulary, width = state[PREFIX + "embeddings.token_embedding.weight"].shape
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407,
        pad_token_id=49407, projection_dim=width,
    )  # fmt: skip
    encoder = CLIPTextModel(config).float().eval().requires_grad_(False)
    load_state(encoder, state, "the CLIP")
    return encoder.to(device)


@functools.cache
def clip_l_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of CLIP-L's text encoder under `text_model.` keys."""
    from comfy import sd1_clip

    with torch.device("meta"):
        model = sd1_clip.SDClipModel(device="meta", dtype=torch.float16)
    state = model.transformer.state_dict()
    return {k: tuple(v.shape) for k, v in state.items() if k.startswith(PREFIX) and not k.endswith("position_ids")}


def check_clip_l(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise AdvUnlearnError that names the first key that is missing, unknown or of another shape than CLIP-L's."""
    own = clip_l_shapes()
    for name in own.keys() & tensors.keys():
        if tuple(tensors[name].shape) != own[name]:
            raise AdvUnlearnError(
                f"{source} is no CLIP-L: {name!r} has shape {tuple(tensors[name].shape)} and not {own[name]}; "
                "give a text encoder of Stable Diffusion 1.x"
            )
    for word, keys in (("lacks", own.keys() - tensors.keys()), ("has unknown", tensors.keys() - own.keys())):
        if keys:
            raise AdvUnlearnError(
                f"{source} {word} {len(keys)} of CLIP-L's {len(own)} tensors, first {min(keys)!r}; "
                "give a text encoder of Stable Diffusion 1.x"
            )


def with_encoder(clip: Any, tensors: Mapping[str, Tensor], strength: float, source: str) -> Any:
    """Return a clone of a CLIP whose CLIP-L is base + strength * (tensors - base), exact at 0 and at 1.

    `tensors` has `text_model.` keys. Raises AdvUnlearnError that names a missing or mis-shaped key.
    """
    require_clip_l(clip)
    check_clip_l(tensors, source)
    clone = clip.clone()
    clone.add_patches({CLIP_L + k: (v,) for k, v in tensors.items()}, strength, 1 - strength)
    return clone


@dataclass(frozen=True)
class HostModel(TextToImage):
    """A MODEL, a CLIP and perhaps a VAE as the library's text-to-image model; `vae` is the host's VAE or None."""

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (B, C, h, w) into pictures (B, 3, H, W) in [0, 1] with the host's VAE."""
        unscaled = self.denoiser.patcher.model.process_latent_out(latents)  # type: ignore[attr-defined]
        pictures = self.vae.decode(unscaled).movedim(-1, 1)
        self.denoiser.load()  # type: ignore[attr-defined]
        return pictures.clone()


def text_to_image(model: Any, clip: Any, vae: Any = None, resolution: int = 512, name: str = "host") -> HostModel:
    """Return the user's MODEL, CLIP and VAE in the library's terms; `resolution` is in pixels, 8 to a latent."""
    from transformers import CLIPTokenizer

    if clip.layer_idx not in (None, -1):
        raise AdvUnlearnError(
            f"this CLIP stops at layer {clip.layer_idx} (CLIP Set Last Layer); connect the CLIP before that node, and "
            "set the last layer on what comes out"
        )
    denoiser = HostDenoiser(model, resolution // 8)
    encoder = text_encoder(clip, denoiser.device)
    denoiser.load()  # last, so that nothing loaded after it takes its place
    return HostModel(name, CLIPTokenizer.from_pretrained(CLIP_TOKENIZER), encoder, denoiser, vae)


class Bar:
    """The node's progress bar. Every update looks whether the user pressed cancel, and raises the host's exception."""

    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.bar, self.done, self.total = comfy.utils.ProgressBar(total, node_id=node_id), 0, total

    def update(self, done: int, preview: Any = None) -> None:
        """Show `done` of the total and, when given, a PIL picture on the node."""
        self.done = done
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, self.total, None if preview is None else ("JPEG", preview, 512))


def encoder_files() -> list[str]:
    """Return the names that the host lists as text encoders."""
    return folder_paths.get_filename_list(FOLDER)


def encoder_path(name: str) -> pathlib.Path:
    """Return the file of a listed text encoder."""
    return pathlib.Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def new_path(name: str, folder: str = "clip", suffix: str = ".safetensors") -> tuple[pathlib.Path, str]:
    """Return a fresh path in a folder of the output, and the name under which the host lists it there at once."""
    output = folder_paths.get_output_directory()
    where, file, counter, _, _ = folder_paths.get_save_image_path(f"{folder}/{name}", output)
    path = pathlib.Path(where) / f"{file}_{counter:05}_{suffix}"
    return path, str(path.relative_to(pathlib.Path(output) / folder))


def run_folder(name: str) -> pathlib.Path:
    """Return the folder in which a training run of this name keeps its state."""
    return pathlib.Path(folder_paths.get_output_directory()) / "advunlearn" / name


@torch.no_grad()
def target_latents(
    attacked: HostModel, original_clip: Any, prompt: str, config: Any, latent: Any, image: Any, vae: Any
) -> Tensor:
    """Return (1, C, h, w) latents in the UNet's scale: of a LATENT, of an IMAGE, or drawn with the original CLIP.

    Raises AdvUnlearnError for a picture without a VAE.
    """
    from ..advunlearn.sampling import ddim_sample

    denoiser = attacked.denoiser
    if latent is None and image is not None:
        if vae is None:
            raise AdvUnlearnError("image is connected but vae is not; connect the VAE that encodes it")
        latent = {"samples": vae.encode(image[:1, :, :, :3].clone())}
        denoiser.load()  # type: ignore[attr-defined]
    if latent is not None:
        samples = latent["samples"][:1].clone()
        return denoiser.patcher.model.process_latent_in(samples).float().to(denoiser.device)  # type: ignore[attr-defined]
    encoder = attacked.text_encoder if original_clip is None else text_encoder(original_clip, denoiser.device)
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(1, *denoiser.latent_shape, generator=generator).to(denoiser.device)
    context, empty = attacked.encode([prompt], encoder), attacked.encode([""], encoder)
    return ddim_sample(denoiser, context, empty, noise, config.sampling_steps, config.guidance_scale)


def reads_as(clip: Any, text: str, ids: Sequence[int]) -> bool:
    """Return whether CLIP Text Encode reads a text as the very tokens `ids` (77, padded), all with weight 1."""
    chunks = clip.tokenize(text).get("l", [])
    return len(chunks) == 1 and [(token, 1.0) for token in ids] == [(c[0], c[1]) for c in chunks[0]]


def save_embedding(name: str, embeddings: Tensor) -> str:
    """Save (k, 768) token embeddings where the host looks for them; return the text that stands for them."""
    from safetensors.torch import save

    folder = pathlib.Path(folder_paths.get_folder_paths("embeddings")[0])
    tensors = {"clip_l": embeddings.detach().float().cpu().contiguous()}
    write_atomic(folder / f"{name}.safetensors", save(tensors))
    return f"embedding:{name}"


def image_of(picture: Any) -> Tensor:
    """Return a PIL picture as a host's IMAGE (1, H, W, 3) in [0, 1]."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(1, picture.height, picture.width, 3).float() / 255


def clip_from(tensors: Mapping[str, Tensor]) -> Any:
    """Return a CLIP for Stable Diffusion 1.x made of an encoder's tensors (`text_model.` keys)."""
    import comfy.sd

    width = tensors[PREFIX + "final_layer_norm.weight"].shape[0]
    # The host leaves a projection that is missing uninitialised.
    state = {**tensors, PROJECTION: torch.eye(width)}
    return comfy.sd.load_text_encoder_state_dicts(
        [state], embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION,
    )  # fmt: skip
