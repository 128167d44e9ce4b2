"""CLIP-L inside the host's CLIP: read it, put another one in its place, make one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.lora
import folder_paths
import torch
from torch import Tensor

from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.formats.detect import count_layers, require_width
from ..advunlearn.formats.lora import LORA_TE, LORA_TE1
from ..advunlearn.formats.text_encoders import PROJECTION, TEXT_PREFIX, get_shapes, load_state
from ..advunlearn.formats.weights import describe_mismatch

CLIP_L = "clip_l.transformer."


@torch.no_grad()
def state_of(clip: Any) -> dict[str, Tensor]:
    """Return CLIP-L's weights in fp32 on the CPU, patches applied, under `text_model.` keys.

    They are computed from the base weights and the patches: what a loaded model holds may be partly offloaded, and a
    state dict of it without its patches. Raises AdvUnlearnError when the CLIP has no CLIP-L.
    """
    require(clip)
    state = {}
    for key, (base, *patches) in clip.patcher.get_key_patches(CLIP_L + TEXT_PREFIX).items():
        if key.endswith("position_ids"):
            continue
        weight, convert = base
        # A copy, since patches are applied in place.
        value = convert(weight.detach().to("cpu", torch.float32, copy=True), inplace=True)
        state[key.removeprefix(CLIP_L)] = comfy.lora.calculate_weight(patches, value, key).detach().clone()
    return state


def require(clip: Any) -> None:
    """Raise AdvUnlearnError unless a CLIP has a CLIP-L text encoder in it."""
    if getattr(clip.cond_stage_model, "clip_l", None) is None:
        inside = [name for name, _ in clip.cond_stage_model.named_children()]
        raise AdvUnlearnError(
            f"this CLIP has no CLIP-L text encoder (it has {', '.join(inside) or 'none'}); give the CLIP of a Stable "
            "Diffusion 1.x, SDXL, SD3, Flux or HunyuanVideo model"
        )


def lora_start(clip: Any) -> str:
    """Return what kohya's names of CLIP-L begin with: in Stable Diffusion 1.x it is alone, elsewhere the first."""
    return LORA_TE if len(list(clip.cond_stage_model.named_children())) == 1 else LORA_TE1


def text_encoder(clip: Any, device: torch.device) -> Any:
    """Return a CLIPTextModel in fp32, on a device, that computes what the CLIP-L of a CLIP does."""
    from transformers import CLIPTextConfig, CLIPTextModel

    state = state_of(clip)
    vocabulary, width = state[TEXT_PREFIX + "embeddings.token_embedding.weight"].shape
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=count_layers(state),
        num_attention_heads=width // 64,
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
        projection_dim=width,
    )
    with torch.device("meta"):  # random weights would take longer than all the rest
        encoder = CLIPTextModel(config).float().train(False).requires_grad_(False)
    encoder.to_empty(device="cpu")
    for position_ids in encoder.buffers():
        position_ids.copy_(torch.arange(position_ids.shape[-1]))
    load_state(encoder, state, "the CLIP")
    return encoder.to(device)


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of CLIP-L's text encoder under `text_model.` keys."""
    from comfy import sd1_clip

    with torch.device("meta"):
        model = sd1_clip.SDClipModel(device="meta", dtype=torch.float16)
    state = model.transformer.state_dict()
    return {k: tuple(v.shape) for k, v in state.items() if k.startswith(TEXT_PREFIX) and not k.endswith("position_ids")}


def check(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise AdvUnlearnError that says which other encoder it is, or names the first key that does not fit CLIP-L."""
    require_width(tensors, 768, source)
    if wrong := describe_mismatch(shapes(), get_shapes(tensors), "CLIP-L's "):
        raise AdvUnlearnError(f"{source} {wrong}; give a text encoder of Stable Diffusion 1.x")


def with_encoder(clip: Any, tensors: Mapping[str, Tensor], strength: float, source: str) -> Any:
    """Return a clone of a CLIP whose CLIP-L is base + strength * (tensors - base), exact at 0 and at 1.

    `tensors` has `text_model.` keys. Raises AdvUnlearnError that names a missing or mis-shaped key.
    """
    require(clip)
    check(tensors, source)
    clone = clip.clone()
    clone.add_patches({CLIP_L + k: (v,) for k, v in tensors.items()}, strength, 1 - strength)
    return clone


def clip_from(tensors: Mapping[str, Tensor]) -> Any:
    """Return a CLIP for Stable Diffusion 1.x made of an encoder's tensors (`text_model.` keys)."""
    import comfy.sd

    width = tensors[TEXT_PREFIX + "final_layer_norm.weight"].shape[0]
    # The host leaves a projection that is missing uninitialised.
    state = {**tensors, PROJECTION: torch.eye(width)}
    return comfy.sd.load_text_encoder_state_dicts(
        [state],
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION,
    )


def reads_as(clip: Any, text: str, ids: Sequence[int]) -> bool:
    """Return whether CLIP Text Encode reads a text as the very tokens `ids` (77, padded), all with weight 1."""
    chunks = clip.tokenize(text).get("l", [])
    return len(chunks) == 1 and [(token, 1.0) for token in ids] == [(c[0], c[1]) for c in chunks[0]]
