"""CLIP-L, and SDXL's CLIP-G, inside the host's CLIP: read it, replace it, make a CLIP of it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import comfy.lora
import folder_paths
import torch
from torch import Tensor

from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.formats.detect import PROJECTION, TEXT_PREFIX, count_layers, require_width
from ..advunlearn.formats.lora import LORA_TE, LORA_TE1, LORA_TE2
from ..advunlearn.formats.text_encoders import load_state
from ..advunlearn.formats.weights import describe_mismatch, get_shapes
from ..advunlearn.models.text_encoder import set_clip_skip

CLIP_L = "clip_l.transformer."
ACTIVATIONS = {"clip_l": "quick_gelu", "clip_g": "gelu"}


@torch.no_grad()
def read_state(clip: Any, part: str = "clip_l") -> dict[str, Tensor]:
    """Return CLIP-L's or CLIP-G's weights in float32 on the CPU, patches applied, under `text_model.` keys.

    They are computed from the base weights and the patches, because the weights of a loaded model may be partly
    offloaded and its state dict then lacks the patches. Raises AdvUnlearnError if the CLIP has no CLIP-L.
    """
    require_clip_l(clip)
    state = {}
    prefix = f"{part}.transformer."
    for key, (base, *patches) in clip.patcher.get_key_patches(prefix).items():
        is_used = key.startswith(prefix + TEXT_PREFIX) or (part == "clip_g" and key == prefix + PROJECTION)
        if key.endswith("position_ids") or not is_used:
            continue
        weight, convert = base
        # Copy, since patches are applied in place.
        value = convert(weight.detach().to("cpu", torch.float32, copy=True), inplace=True)
        state[key.removeprefix(prefix)] = comfy.lora.calculate_weight(patches, value, key).detach().clone()
    return state


def require_clip_l(clip: Any) -> None:
    """Raise AdvUnlearnError if a CLIP contains no CLIP-L text encoder."""
    if getattr(clip.cond_stage_model, "clip_l", None) is None:
        encoders = [name for name, _ in clip.cond_stage_model.named_children()]
        raise AdvUnlearnError(
            f"this CLIP has no CLIP-L text encoder (it has {', '.join(encoders) or 'none'}); connect the CLIP of a "
            "Stable Diffusion 1.x, SDXL, SD3, Flux, HunyuanVideo, HiDream or Kandinsky 5 model"
        )


def find_lora_prefix(clip: Any, part: str = "clip_l") -> str:
    """Return the start of an encoder's keys in kohya's LoRA files; CLIP-L's differs if there is another encoder."""
    if part == "clip_g":
        return LORA_TE2
    return LORA_TE if len(list(clip.cond_stage_model.named_children())) == 1 else LORA_TE1


def make_text_encoder(clip: Any, device: torch.device) -> Any:
    """Return the CLIP-L of a CLIP as a transformers CLIPTextModel in float32 on a device."""
    encoder = make_part(clip, "clip_l", device)
    set_clip_skip(encoder, count_skipped(clip.layer_idx, encoder.config.num_hidden_layers))
    return encoder


def make_part(clip: Any, part: str, device: torch.device) -> Any:
    """Return an encoder of a CLIP in float32: CLIP-L as a CLIPTextModel, CLIP-G as a CLIPTextModelWithProjection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    state = read_state(clip, part)
    vocabulary, width = state[TEXT_PREFIX + "embeddings.token_embedding.weight"].shape
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=count_layers(state),
        num_attention_heads=width // 64,
        hidden_act=ACTIVATIONS[part],
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
        projection_dim=width,
    )
    with torch.device("meta"):  # initialising random weights would take longer than everything else here
        kind = CLIPTextModelWithProjection if part == "clip_g" else CLIPTextModel
        encoder = kind(config).float().train(False).requires_grad_(False)
    load_state(encoder, state, "the CLIP", assign=True)  # a copy would take 3 GB more for SDXL
    for module in encoder.modules():
        for name, position_ids in module.named_buffers(recurse=False):
            setattr(module, name, torch.arange(position_ids.shape[-1]).expand(position_ids.shape))
    return encoder.to(device)


def count_skipped(layer_idx: int | None, layers: int) -> int:
    """Return how many layers a CLIP skips, by its layer from CLIP Set Last Layer: -2 skips one.

    The host counts a layer from 0 if it is not negative, and skips none for a layer that does not exist.
    """
    if layer_idx is None or abs(layer_idx) > layers or layer_idx == layers:
        return 0
    return -1 - layer_idx if layer_idx < 0 else layers - 1 - layer_idx


@functools.cache
def read_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of CLIP-L's weights under `text_model.` keys."""
    from comfy import sd1_clip

    with torch.device("meta"):
        model = sd1_clip.SDClipModel(device="meta", dtype=torch.float16)
    state = model.transformer.state_dict()
    return {k: tuple(v.shape) for k, v in state.items() if k.startswith(TEXT_PREFIX) and not k.endswith("position_ids")}


def check(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise AdvUnlearnError that says which other encoder it is, or names the first key that does not fit CLIP-L."""
    require_width(tensors, 768, source)
    if mismatch := describe_mismatch(read_shapes(), get_shapes(tensors), "CLIP-L's "):
        raise AdvUnlearnError(f"{source} {mismatch}; give a text encoder of Stable Diffusion 1.x")


def replace_encoder(clip: Any, tensors: Mapping[str, Tensor], strength: float, source: str) -> Any:
    """Return a clone of a CLIP whose CLIP-L is base + strength * (tensors - base), bit-exact at 0 and at 1.

    Args:
        clip: the CLIP; it is not changed.
        tensors: the encoder's weights under `text_model.` keys.
        strength: the weight of `tensors`.
        source: name of the encoder in error messages.

    Raises AdvUnlearnError, naming the first key, for weights that are missing or do not fit CLIP-L.
    """
    require_clip_l(clip)
    check(tensors, source)
    clone = clip.clone()
    clone.add_patches({CLIP_L + k: (v,) for k, v in tensors.items()}, strength, 1 - strength)
    return clone


def make_clip(tensors: Mapping[str, Tensor], second: Mapping[str, Tensor] | None = None) -> Any:
    """Make a CLIP for Stable Diffusion 1.x, or with CLIP-G for SDXL, of weights under `text_model.` keys."""
    import comfy.sd

    width = tensors[TEXT_PREFIX + "final_layer_norm.weight"].shape[0]
    # The host leaves a missing projection as uninitialised memory, which CLIPSave would write.
    state = {**tensors, PROJECTION: torch.eye(width)}
    return comfy.sd.load_text_encoder_state_dicts(
        [state, *([dict(second)] if second else [])],
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION,
    )


def refuse_embeddings(clip: Any) -> Any:
    """Return a clone of a CLIP that reads `embedding:NAME` in a prompt as plain text, for all of its text encoders.

    Raises AdvUnlearnError if its tokenizer has no folder of embeddings that could be turned off.
    """
    clone = clip.clone()
    clone.tokenizer, turned_off = _without_embeddings(clip.tokenizer)
    if not turned_off:
        raise AdvUnlearnError(
            f"embeddings cannot be refused for this CLIP: its tokenizer {type(clip.tokenizer).__name__} is of an "
            "unknown kind; set embeddings to allow, or connect another CLIP"
        )
    return clone


def _without_embeddings(tokenizer: Any) -> tuple[Any, int]:
    """Return a copy of a tokenizer, and of those inside it, without folders of embeddings, and how many those are.

    A copy, because all clones of a CLIP share one tokenizer.
    """
    clone = copy.copy(tokenizer)
    turned_off = 0
    if hasattr(clone, "embedding_directory"):
        clone.embedding_directory = None
        return clone, 1
    for name, inner in vars(tokenizer).items():
        if hasattr(inner, "tokenize_with_weights"):
            replacement, count = _without_embeddings(inner)
            setattr(clone, name, replacement)
            turned_off += count
    return clone, turned_off


def refuses_embeddings(clip: Any) -> bool:
    """Return whether a CLIP reads `embedding:NAME` in a prompt as plain text, see `refuse_embeddings`."""
    folders = [tokenizer.embedding_directory for tokenizer in _find_tokenizers(clip.tokenizer)]
    return bool(folders) and all(folder is None for folder in folders)


def _find_tokenizers(tokenizer: Any) -> Iterator[Any]:
    """Yield the tokenizers, of those inside a tokenizer and itself, that have a folder of embeddings or None for it."""
    if hasattr(tokenizer, "embedding_directory"):
        yield tokenizer
        return
    for inner in vars(tokenizer).values():
        if hasattr(inner, "tokenize_with_weights"):
            yield from _find_tokenizers(inner)


def count_embeddings(tokens: Mapping[str, Sequence[Sequence[Any]]]) -> int:
    """Return how many of CLIP-L's tokens are embeddings, of what a CLIP makes of a text."""
    return sum(isinstance(token[0], Tensor) for chunk in tokens.get("l", ()) for token in chunk)


def tokenizes_to(clip: Any, text: str, ids: Sequence[int]) -> bool:
    """Return whether CLIP Text Encode makes exactly these tokens of a text, for all CLIP encoders and with weight 1.

    `ids` are in padded chunks of 77; those behind the text's own have no start token, and are not made.
    """
    chunks = [ids[i : i + 77] for i in range(0, len(ids), 77) if ids[i] == ids[0]]
    made = clip.tokenize(text)
    parts = [made[name] for name in ("l", "g") if name in made]
    return "l" in made and all(
        len(part) == len(chunks) and all(_is_chunk(*pair) for pair in zip(part, chunks, strict=True)) for part in parts
    )


def _is_chunk(made: Sequence[Sequence[Any]], ids: Sequence[int]) -> bool:
    """Return whether a chunk of (token, weight) has these ids up to the end of text; CLIP-G's padding is another."""
    tokens = [None if isinstance(token[0], Tensor) else token[0] for token in made]
    end = ids.index(max(ids))  # the end of text is the highest id
    return len(made) == len(ids) and tokens[: end + 1] == ids[: end + 1] and all(token[1] == 1.0 for token in made)


def ends_chunk_early(tokens: Mapping[str, Sequence[Sequence[Any]]]) -> bool:
    """Return whether a CLIP moved an embedding or a short text as a whole into the next chunk."""
    last = [(chunk[-2][0], chunk[-1][0]) for chunk in tokens.get("l", ())[:-1]]
    return any(not isinstance(token, Tensor) and token == end for token, end in last)
