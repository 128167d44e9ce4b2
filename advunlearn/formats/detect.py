"""Recognise what a file of weights holds from names and shapes, for error messages that say what a file is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from ..errors import AdvUnlearnError

TEXT_PREFIX = "text_model."  # of a text encoder's tensors in the layout of transformers 4
PROJECTION = "text_projection.weight"
CLIP_G_WIDTH = 1280
# CLIP text encoders by their width.
ENCODERS_BY_WIDTH = {
    512: "CLIP ViT-B's text encoder",
    768: "CLIP-L",
    1024: "Stable Diffusion 2's text encoder (OpenCLIP ViT-H)",
    CLIP_G_WIDTH: "SDXL's CLIP-G (OpenCLIP ViT-bigG)",
}
EMBEDDING = "a textual inversion embedding: name it in a prompt"
OPENCLIP_MARK = "resblocks."
DIFFUSERS_UNET = "a diffusers UNet"
# Kinds by a part of a tensor's name, the most specific first.
KINDS_BY_NAME = {
    "hada_w1_a": "a LoHa (LyCORIS): load it with a LoRA loader",
    "lokr_w1": "a LoKr (LyCORIS): load it with a LoRA loader",
    "oft_blocks": "an OFT (LyCORIS): load it with a LoRA loader",
    "oft_diag": "an OFT (LyCORIS): load it with a LoRA loader",
    "dora_scale": "a DoRA: load it with a LoRA loader",
    "lora_magnitude_vector": "a DoRA (PEFT): load it with a LoRA loader",
    ".lora_A.": "a LoRA (PEFT): load it with a LoRA loader",
    "lora_": "a LoRA: load it with a LoRA loader",
    ".processor.to_q_lora.": "a LoRA (early diffusers): load it with a LoRA loader",
    "string_to_param": EMBEDDING,
    "emb_params": EMBEDDING,
    "SelfAttention": "a T5 encoder",
    "patch_embedding": "a CLIP vision encoder",
    "model.layers.0.self_attn": "a language model (Llama, Qwen or Gemma)",
    "input_blocks": "a UNet or a checkpoint without its text encoder",
    "controlnet_": "a ControlNet",
    "motion_modules": "a motion module",
    "encoder.down_blocks": "a diffusers autoencoder",
    "down_blocks": DIFFUSERS_UNET,
}

UNET_PREFIX = "model.diffusion_model."  # of the UNet in a checkpoint in the original layout
SD1 = "a Stable Diffusion 1.x checkpoint"
SDXL = "an SDXL checkpoint"
# Checkpoints in the original layout by the width of their conditioning, and by the input channels of their UNet.
CHECKPOINTS_BY_CONTEXT_WIDTH = {
    768: SD1,
    1024: "a Stable Diffusion 2 checkpoint",
    2048: SDXL,
    1280: "an SDXL refiner checkpoint",
}
# Diffusion transformers by the start of a tensor's name in their own layout, the most specific first.
TRANSFORMERS_BY_NAME = {
    "txt_in.individual_token_refiner.": "HunyuanVideo",
    "visual_transformer_blocks.": "Kandinsky 5",
    "caption_projection.": "HiDream",
    "distilled_guidance_layer.": "Chroma",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "double_layers.": "AuraFlow",
    "cap_embedder.": "Lumina",
    "head.modulation": "Wan",
    "clf.1.": "Stable Cascade",
}
PURPOSES_BY_CHANNELS = {
    4: "",
    5: " for depth maps",
    7: " for upscaling",
    8: " for image editing (pix2pix)",
    9: " for inpainting",
}


def count_layers(names: Iterable[str]) -> int:
    """Return the number of a text encoder's layers, from the names of its tensors."""
    numbers = (re.search(r"layers\.(\d{1,4})\.", name) for name in names)
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)


def get_size(shape: Sequence[int], axis: int = 0) -> int:
    """Return the size of a tensor along an axis; 0 if it has no such axis."""
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def name_clip_encoder(width: int, layers: int = 0) -> str:
    """Return a description of a CLIP text encoder by its width and, unless 0, its number of layers."""
    name = ENCODERS_BY_WIDTH.get(width, "a CLIP text encoder of an unknown kind")
    return f"{name}, {width} wide" + (f", {layers} layers" if layers else "")


def detect_weights_kind(names: Sequence[str], shape: Callable[[str], tuple[int, ...]]) -> str:
    """Return a description of a file that holds no CLIP text encoder in a transformers layout; "" if it is unknown.

    `shape` returns the shape of a tensor by its name.
    """
    if any(OPENCLIP_MARK in name for name in names):
        norm = next((name for name in names if name.endswith("ln_final.weight")), None)
        return (
            "an OpenCLIP encoder"
            if norm is None
            else name_clip_encoder(get_size(shape(norm))) + ", in OpenCLIP's layout"
        )
    if names and all(name in ("clip_l", "clip_g", "*") or name.startswith("<") for name in names):
        return EMBEDDING
    if transformer := name_transformer(names):
        return f"a diffusion transformer ({transformer})"
    return next((kind for mark, kind in KINDS_BY_NAME.items() if any(mark in name for name in names)), "")


def name_transformer(names: Sequence[str]) -> str:
    """Return the model of a diffusion transformer in its own layout, with or without a checkpoint's prefix, or ""."""
    bare = [name.removeprefix(UNET_PREFIX) for name in names]
    return next(
        (model for start, model in TRANSFORMERS_BY_NAME.items() if any(name.startswith(start) for name in bare)), ""
    )


def detect_checkpoint_kind(names: Sequence[str], shape: Callable[[str], tuple[int, ...]]) -> str:
    """Return the model that a full checkpoint is of, such as `SD1`, or what the file is instead; "" if it is unknown.

    `shape` returns the shape of a tensor by its name.
    """
    conv_in = UNET_PREFIX + "input_blocks.0.0.weight"
    if conv_in not in names:
        is_checkpoint = any(name.startswith(UNET_PREFIX) for name in names)
        if is_checkpoint and (transformer := name_transformer(names)):
            return f"a checkpoint of a diffusion transformer ({transformer})"
        is_transformer = is_checkpoint and any("blocks.0." in name for name in names)
        return "a checkpoint of a diffusion transformer" if is_transformer else detect_weights_kind(names, shape)
    to_k = next((name for name in names if name.startswith(UNET_PREFIX) and name.endswith("attn2.to_k.weight")), None)
    width = get_size(shape(to_k), -1) if to_k else 0
    channels = get_size(shape(conv_in), 1)
    family = CHECKPOINTS_BY_CONTEXT_WIDTH.get(width, f"a checkpoint whose UNet takes {width} wide conditioning")
    return family + PURPOSES_BY_CHANNELS.get(channels, f" whose UNet takes {channels} channels")


def require_width(tensors: Mapping[str, Tensor], width: int, source: str) -> None:
    """Raise AdvUnlearnError that names the text encoder, unless its layers are `width` wide."""
    norm = "encoder.layers.0.layer_norm1.weight"
    actual = next((get_size(tensor.shape, -1) for name, tensor in tensors.items() if name.endswith(norm)), width)
    if actual != width:
        raise AdvUnlearnError(
            f"{source} is {name_clip_encoder(actual, count_layers(tensors))}; this model needs "
            f"{name_clip_encoder(width)}: give a text encoder trained from the same base"
        )
