"""CLIP text encoders: find them in files of every layout, and write them for every loader.

transformers 5 dropped the `text_model.` prefix that every other loader of CLIP-L expects. Files written here always
have it, whatever the installed version, and both layouts are read.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config.io import FileDtype
from ..errors import AdvUnlearnError
from ..files import TEXT_ENCODER_WEIGHTS, JsonDict, write_atomic
from .detect import PROJECTION, TEXT_PREFIX, detect_weights_kind, get_size, require_width
from .openclip import from_openclip
from .tensors import require_all_finite, write_safetensors
from .weights import TensorShapes, Weights, describe_mismatch, get_shapes, open_weights

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

ConfigDict = JsonDict  # the content of a config.json

DTYPE = "advunlearn.dtype"  # metadata key
SMALL_FILE = 2**26  # bytes in fp32: a file that is small anyway keeps its precision
ENCODER_FORMAT = "advunlearn.text_encoder.v1"
# Endings of what stands next to weights: positions, and the scales of fp8 weights, which `_read_scaled` uses.
WEIGHT_SCALES = ("scale_weight", "weight_scale")
NO_WEIGHTS = ("position_ids", "scaled_fp8", "scale_input", "input_scale", "comfy_quant", *WEIGHT_SCALES)
TOKEN_TABLE = "embeddings.token_embedding.weight"
CLIP_L_WIDTH = 768
CLIP_TOKENS = 49408  # rows of CLIP's token embedding; textual inversion may have added more
POSITION_TABLE = "embeddings.position_embedding.weight"
LONG_CLIP_POSITIONS = 248
# The prefixes of CLIP-L's `encoder.` and `embeddings.` in files, the most specific first.
ENCODER_PREFIXES = tuple(
    root + prefix
    for root in (
        "cond_stage_model.transformer.",  # Stable Diffusion 1.x checkpoints; the earliest lack `text_model.`
        "conditioner.embedders.0.transformer.",  # SDXL checkpoints
        "text_encoders.clip_l.transformer.",  # checkpoints that ComfyUI saved
        "clip_l.transformer.",
        "text_encoder.",  # the published trainer's .pt
        "",
    )
    for prefix in (TEXT_PREFIX, "")
)


def make_portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's tensors on the CPU, under `text_model.` keys and with the projection that loaders expect.

    The projection is the encoder's own (CLIP-G) or an identity (CLIP-L, whose pooled output is not projected).
    """
    state = {
        TEXT_PREFIX + name.removeprefix(TEXT_PREFIX): tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if not name.endswith(("position_ids", PROJECTION))
    }
    if PROJECTION in tensors:
        projection = tensors[PROJECTION].detach().cpu().contiguous()
    else:
        norm = state[TEXT_PREFIX + "final_layer_norm.weight"]
        projection = torch.eye(len(norm), dtype=norm.dtype)
    return state | {PROJECTION: projection}


def export_state(encoder: nn.Module) -> dict[str, Tensor]:
    """Return a CLIPTextModel's weights in the form of `make_portable`."""
    return make_portable(encoder.state_dict())


def hash_encoder(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of an encoder's weights in fp32, which does not depend on the container or its layout.

    Projections and buffers, which not every container has, are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted((name.removeprefix(TEXT_PREFIX), tensor) for name, tensor in tensors.items()):
        if name.endswith(("position_ids", PROJECTION)):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def require_encoder_shapes(expected: TensorShapes, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise AdvUnlearnError for an encoder of another width, or with a missing, unknown or mis-shaped tensor.

    Names are with or without `text_model.`; buffers and projections are not compared.
    """
    expected = _strip_names(expected)
    if norm := expected.get("encoder.layers.0.layer_norm1.weight"):
        require_width(tensors, norm[-1], source)
    shapes = _strip_names(get_shapes(tensors))
    positions, needed = (get_size(each.get(POSITION_TABLE, ())) for each in (shapes, expected))
    if positions > needed > 0:
        name = "LongCLIP" if positions == LONG_CLIP_POSITIONS else "a CLIP text encoder for longer prompts"
        raise AdvUnlearnError(
            f"{source} is {name}, which reads {positions} tokens; this model's encoder reads {needed}: give one "
            "trained from the same base"
        )
    if wrong := describe_mismatch(expected, shapes):
        raise AdvUnlearnError(
            f"{source} {wrong}: it is not a text encoder of this model's shape; give a CLIP text encoder trained from "
            "the same base"
        )


def _strip_names(shapes: TensorShapes) -> TensorShapes:
    return {
        name.removeprefix(TEXT_PREFIX): shape
        for name, shape in shapes.items()
        if not name.endswith(("position_ids", PROJECTION))
    }


def load_state(encoder: nn.Module, tensors: Mapping[str, Tensor], source: str, assign: bool = False) -> None:
    """Copy weights, with or without `text_model.` in their names, into an encoder: all of them or none.

    With `assign` the encoder takes the tensors themselves; it may then be on the meta device.
    Raises AdvUnlearnError for an encoder of another width, or with a missing, unknown or mis-shaped tensor.
    """
    current = encoder.state_dict()
    require_encoder_shapes(get_shapes(current), tensors, source)
    full_names = {name.removeprefix(TEXT_PREFIX): name for name in current}
    state = {}
    for name, tensor in tensors.items():
        if full_name := full_names.get(name.removeprefix(TEXT_PREFIX)):
            state[full_name] = tensor.to(current[full_name].dtype)
    encoder.load_state_dict(state, strict=False, assign=assign)


def encode_metadata(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return metadata as safetensors stores it: values that are not text become JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in metadata.items()}


def save_encoder(
    path: str | pathlib.Path, encoder: nn.Module, metadata: Mapping[str, object], dtype: torch.dtype | None = None
) -> pathlib.Path:
    """Write an encoder as one safetensors file, atomically.

    Args:
        path: the file.
        encoder: the encoder; it is not changed.
        metadata: values that are not text become JSON.
        dtype: round the weights to that dtype, which the metadata then states; None: write them as they are.

    Raises AdvUnlearnError for a NaN, or a value that the dtype cannot hold.
    """
    state = encoder.state_dict()
    if dtype is not None:
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
        metadata = {**metadata, DTYPE: f"trained in float32, saved in {str(dtype).removeprefix('torch.')}"}
    return write_encoder(path, state, metadata)


def choose_file_dtype(choice: FileDtype, encoder: nn.Module) -> torch.dtype:
    """Return the dtype of a trained encoder's file; auto: fp16, or fp32 for less than `SMALL_FILE`."""
    if choice == "auto":
        size = sum(4 * p.numel() for p in encoder.parameters())
        choice = "float16" if size >= SMALL_FILE else "float32"
    return torch.float16 if choice == "float16" else torch.float32


def write_encoder(
    path: str | pathlib.Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]
) -> pathlib.Path:
    """Write an encoder's tensors as one safetensors file for any loader."""
    text = {**encode_metadata(metadata), "format": "pt", "advunlearn.format": ENCODER_FORMAT}
    return write_safetensors(path, make_portable(tensors), text)


def write_published(path: str | pathlib.Path, tensors: Mapping[str, Tensor]) -> pathlib.Path:
    """Write an encoder's tensors as the published trainer and attack read them: a pickle, prefix `text_encoder.`.

    Their loader takes the names that contain `text_encoder.text_model`, and without any takes nothing, silently.
    """
    require_all_finite(tensors, f"{path} was not written")
    state = {f"text_encoder.{name}": tensor for name, tensor in make_portable(tensors).items() if name != PROJECTION}
    return write_atomic(path, lambda file: torch.save(state, file))


def save_encoder_folder(
    path: str | pathlib.Path,
    encoder: CLIPTextModel | CLIPTextModelWithProjection,
    metadata: Mapping[str, object] | None = None,
) -> pathlib.Path:
    """Write a CLIPTextModel folder for diffusers, with `text_model.` keys for every version of transformers."""
    return write_encoder_folder(path, encoder.state_dict(), encoder.config.to_dict(), metadata or {})


def write_encoder_folder(
    path: str | pathlib.Path, tensors: Mapping[str, Tensor], config: ConfigDict, metadata: Mapping[str, object]
) -> pathlib.Path:
    """Write an encoder's tensors and configuration as a CLIPTextModel folder, with its projection if it has one."""
    from transformers import CLIPTextConfig

    path = pathlib.Path(path)
    has_projection = PROJECTION in tensors  # CLIP-G's
    text_config = CLIPTextConfig(**{k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")})
    text_config.architectures = ["CLIPTextModelWithProjection" if has_projection else "CLIPTextModel"]
    if has_projection:
        text_config.projection_dim = len(tensors[PROJECTION])
    write_atomic(path / "config.json", text_config.to_json_string().encode())
    state = make_portable(tensors)
    if not has_projection:
        del state[PROJECTION]
    write_safetensors(path / TEXT_ENCODER_WEIGHTS[0], state, {**encode_metadata(metadata), "format": "pt"})
    return path


def find_clip_l_prefix(weights: Weights) -> str:
    """Return the prefix of CLIP-L's tensors in a file.

    Known layouts are this library's files, CLIPTextModel folders (with and without `text_model.`), the published
    trainer's files, which hold every tensor twice, and Stable Diffusion 1.x and SDXL checkpoints.
    Raises AdvUnlearnError that says what the file is instead.
    """
    if prefixes := find_encoder_prefixes(weights):
        return prefixes[0]
    kind = detect_weights_kind(weights.names, weights.shape)
    found = f"it is {kind}" if kind else f"its first tensor is {min(weights.names, default='nothing')!r}"
    raise AdvUnlearnError(
        f"{weights.source} holds no CLIP-L text encoder: {found}; give an encoder's file, a CLIPTextModel folder, or a "
        "whole Stable Diffusion 1.x or SDXL checkpoint"
    )


def find_encoder_prefixes(weights: Weights) -> list[str]:
    """Return every prefix under which a file holds a CLIP text encoder."""
    names = set(weights.names)
    layer = "encoder.layers.0.layer_norm1.weight"
    vision = "embeddings.patch_embedding.weight"
    return [prefix for prefix in ENCODER_PREFIXES if prefix + layer in names and prefix + vision not in names]


def map_encoder_names(weights: Weights, prefix: str) -> dict[str, str]:
    """Return the names in a file of a text encoder's tensors, by their portable names (`text_model. ...`)."""
    starts = tuple(prefix + part for part in ("encoder.", "embeddings.", "final_layer_norm."))
    names = (name for name in weights.names if name.startswith(starts) and not name.endswith(NO_WEIGHTS))
    return {TEXT_PREFIX + name.removeprefix(prefix): name for name in names}


def extract_encoder(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors of the CLIP-L text encoder in a file, under `text_model.` keys.

    Scaled fp8 weights are returned in fp32. Rows that were added to the token embedding, which no tokenizer of CLIP
    reaches, are left out. Raises AdvUnlearnError when it holds none, or holds two copies that differ.
    """
    if is_openai_clip_l(weights):
        return _extract_openai(weights)
    prefix = find_clip_l_prefix(weights)
    tensors = {name: _read_scaled(weights, stored) for name, stored in map_encoder_names(weights, prefix).items()}
    table = tensors.get(TEXT_PREFIX + TOKEN_TABLE)
    if table is not None and table.dim() == 2 and len(table) > CLIP_TOKENS:
        tensors[TEXT_PREFIX + TOKEN_TABLE] = table[:CLIP_TOKENS].clone()
    for other in find_encoder_prefixes(weights):
        if other != prefix:
            _require_equal_copy(weights, tensors, map_encoder_names(weights, other))
    return tensors


def count_added_tokens(weights: Weights) -> int:
    """Return how many rows a file's token embedding has beyond CLIP's: `extract_encoder` leaves them out."""
    tables = [
        name for prefix in find_encoder_prefixes(weights)[:1] for name in map_encoder_names(weights, prefix).values()
    ]
    table = next((name for name in tables if name.endswith(TOKEN_TABLE)), None)
    return max(0, get_size(weights.shape(table)) - CLIP_TOKENS) if table else 0


def is_openai_clip_l(weights: Weights) -> bool:
    """Return whether a file is CLIP-L in OpenAI's layout, in which fine-tunes of the whole CLIP come."""
    norm = "transformer.resblocks.0.ln_1.weight"
    return norm in weights.names and "ln_final.weight" in weights.names and weights.shape(norm) == (CLIP_L_WIDTH,)


def _extract_openai(weights: Weights) -> dict[str, Tensor]:
    """Return the text encoder of a CLIP-L in OpenAI's layout; its projection and image encoder are left out."""
    names = [name for name in weights.names if name.startswith(("transformer.", "ln_final.", "token_embedding."))]
    tensors = from_openclip(
        {name: weights.read(name) for name in [*names, "positional_embedding"] if name in weights.names}
    )
    return {name: tensor for name, tensor in tensors.items() if name != PROJECTION}


def _read_scaled(weights: Weights, name: str) -> Tensor:
    """Read a weight; one in fp8 with a scale, a number or one for each row, as their product in fp32."""
    tensor = weights.read(name)
    layer = name.removesuffix("weight")
    scales = [layer + ending for ending in WEIGHT_SCALES if layer + ending in weights.names]
    if not scales or tensor.element_size() > 1:
        return tensor
    scale = weights.read(scales[0]).float()
    if scale.numel() not in (1, get_size(tensor.shape)):
        raise AdvUnlearnError(f"{weights.source}: {scales[0]!r} is {tuple(scale.shape)}, no scale of {name!r}")
    return tensor.float() * scale.reshape(-1, *[1] * (tensor.dim() - 1))


def _require_equal_copy(weights: Weights, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    for name, stored in names.items():
        copy = weights.read(stored)
        if name not in tensors or tensors[name].dtype != copy.dtype or not torch.equal(tensors[name], copy):
            raise AdvUnlearnError(
                f"{weights.source} holds its text encoder twice, and the copies differ, first in {stored!r}; "
                "save it again from where it was trained"
            )


def read_encoder(path: str | pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a CLIP text encoder's tensors under `text_model.` keys, and the metadata of its file.

    Raises AdvUnlearnError when the file is missing, cannot be read, or holds no CLIP text encoder.
    """
    with open_weights(path) as weights:
        return extract_encoder(weights), weights.metadata
