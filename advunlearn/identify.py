"""Say what a file of weights is, for refusals that name it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from .errors import AdvUnlearnError

# CLIP text encoders by their width; the layers are what the file has.
BY_WIDTH = {
    512: "CLIP ViT-B's text encoder",
    768: "CLIP-L",
    1024: "Stable Diffusion 2's text encoder (OpenCLIP ViT-H)",
    1280: "SDXL's CLIP-G (OpenCLIP ViT-bigG)",
}
OPENCLIP = "resblocks."
# What stands in a tensor's name, the most telling first.
BY_NAME = {
    "lora_": "a LoRA: load it with a LoRA loader",
    "SelfAttention": "a T5 encoder",
    "patch_embedding": "a CLIP vision encoder",
    "model.layers.0.self_attn": "a language model (Llama, Qwen or Gemma)",
    "input_blocks": "a UNet or a checkpoint without its text encoder",
    "double_blocks": "a diffusion transformer or a checkpoint without its text encoder",
    "joint_blocks": "a diffusion transformer or a checkpoint without its text encoder",
    "down_blocks": "a diffusers UNet",
}


def layer_count(names: Iterable[str]) -> int:
    """Return how many layers a text encoder has, from its tensors' names."""
    return 1 + max((int(n.split("layers.")[1].split(".")[0]) for n in names if "layers." in n), default=-1)


def clip_of(width: int, layers: int = 0) -> str:
    """Return a CLIP text encoder's name, from the width of its layers and their number."""
    name = BY_WIDTH.get(width, "a CLIP text encoder of an unknown kind")
    return f"{name}, {width} wide" + (f", {layers} layers" if layers else "")


def describe(names: Sequence[str], read: Callable[[str], Tensor]) -> str:
    """Return what a file is that holds no CLIP text encoder under a transformers layout; "" when nobody can tell.

    `read` returns a tensor by its name; at most one of (width,) values is read.
    """
    if any(OPENCLIP in name for name in names):
        norm = next((name for name in names if name.endswith("ln_final.weight")), None)
        return "an OpenCLIP encoder" if norm is None else clip_of(read(norm).shape[0]) + ", in OpenCLIP's layout"
    return next((what for mark, what in BY_NAME.items() if any(mark in name for name in names)), "")


def require_width(tensors: Mapping[str, Tensor], width: int, source: str) -> None:
    """Raise AdvUnlearnError that names a text encoder whose layers have another width than `width`."""
    found = next((v.shape[-1] for k, v in tensors.items() if k.endswith("encoder.layers.0.layer_norm1.weight")), width)
    if found != width:
        raise AdvUnlearnError(
            f"{source} is {clip_of(found, layer_count(tensors))}; this model needs {clip_of(width)}: "
            "give a text encoder trained from the same base"
        )
