"""Text encoders: found in whatever holds them, written for whatever loads them.

transformers 5 dropped the `text_model.` prefix that every other loader of CLIP-L expects; what is written here always
carries it, whatever the installed version, and both layouts are read.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from ..files import TEXT_ENCODER_WEIGHTS, write_atomic, write_safetensors
from .detect import count_layers, detect_weights_kind, name_clip_encoder, require_width
from .weights import Weights, describe_mismatch, find_weights_file, open_weights

TEXT_PREFIX, PROJECTION = "text_model.", "text_projection.weight"
ENCODER_FORMAT = "advunlearn.text_encoder.v1"
SHAPES = pathlib.Path(__file__).parents[1] / "data" / "shapes"
CLIP_L_CONFIG = SHAPES / "sd15" / "text_encoder" / "config.json"  # CLIP-L's
SECOND = SHAPES / "sdxl" / "text_encoder_2" / "config.json"  # CLIP-G's
# Where CLIP-L's `encoder.` and `embeddings.` stand, with and without the prefix: the most telling first.
ENCODER_PREFIXES = tuple(
    root + prefix
    for root in (
        "cond_stage_model.transformer.",  # SD 1.x checkpoints; the first of them without the prefix
        "conditioner.embedders.0.transformer.",  # SDXL checkpoints
        "text_encoders.clip_l.transformer.",  # checkpoints that ComfyUI saved
        "clip_l.transformer.",
        "text_encoder.",  # the published trainer's .pt
        "",
    )
    for prefix in (TEXT_PREFIX, "")
)


def make_portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's tensors under `text_model.` keys, with a projection, which loaders ask for: CLIP-G's own."""
    state = {
        TEXT_PREFIX + name.removeprefix(TEXT_PREFIX): tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if not name.endswith(("position_ids", PROJECTION))
    }
    norm = state[TEXT_PREFIX + "final_layer_norm.weight"]
    own = tensors.get(PROJECTION)
    projection = torch.eye(len(norm), dtype=norm.dtype) if own is None else own.detach().cpu().contiguous()
    return state | {PROJECTION: projection}


def export_state(encoder: Any) -> dict[str, Tensor]:
    """Return a CLIPTextModel's weights, as `make_portable` has them."""
    return make_portable(encoder.state_dict())


def hash_encoder(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of an encoder's weights as fp32: the same whichever container and layout they are in.

    Projections and buffers, which not every container has, do not count.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted((name.removeprefix(TEXT_PREFIX), tensor) for name, tensor in tensors.items()):
        if name.endswith(("position_ids", PROJECTION)):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def require_encoder_shapes(own: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise AdvUnlearnError that names an encoder of another width, or the first missing, unknown or mis-shaped tensor.

    `own` are the shapes that are asked for. Names are with or without `text_model.`; buffers and projections do not
    count.
    """

    def bare(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {
            k.removeprefix(TEXT_PREFIX): v for k, v in shapes.items() if not k.endswith(("position_ids", PROJECTION))
        }

    own, given = bare(own), bare(get_shapes(tensors))
    require_width(tensors, own["encoder.layers.0.layer_norm1.weight"][-1], source)
    if wrong := describe_mismatch(own, given):
        raise AdvUnlearnError(
            f"{source} {wrong}: it is not a text encoder of this model's shape; give a CLIP text encoder trained from "
            "the same base"
        )


def get_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def load_state(encoder: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights under either layout into an encoder, all or nothing.

    Raises AdvUnlearnError that names an encoder of another width, or the first missing, unknown or mis-shaped key.
    """
    own = encoder.state_dict()
    require_encoder_shapes(get_shapes(own), tensors, source)
    bare = {name.removeprefix(TEXT_PREFIX): name for name in own}
    given = {bare[k]: v for name, v in tensors.items() if (k := name.removeprefix(TEXT_PREFIX)) in bare}
    encoder.load_state_dict({k: v.to(own[k].dtype) for k, v in given.items()}, strict=False)


def encode_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata as safetensors stores it: values that are not text become JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in metadata.items()}


def save_encoder(path: str | pathlib.Path, encoder: Any, metadata: Mapping[str, Any]) -> pathlib.Path:
    """Write an encoder as one safetensors file, atomically; `metadata` values that are not text are stored as JSON."""
    return write_encoder(path, encoder.state_dict(), metadata)


def write_encoder(path: str | pathlib.Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> pathlib.Path:
    """Write an encoder's tensors as one safetensors file for any loader."""
    text = {**encode_metadata(metadata), "format": "pt", "advunlearn.format": ENCODER_FORMAT}
    return write_safetensors(path, make_portable(tensors), text)


def save_encoder_folder(
    path: str | pathlib.Path, encoder: Any, metadata: Mapping[str, Any] | None = None
) -> pathlib.Path:
    """Write a CLIPTextModel folder for diffusers, with `text_model.` keys whatever transformers' version."""
    return write_encoder_folder(path, encoder.state_dict(), encoder.config.to_dict(), metadata or {})


def write_encoder_folder(
    path: str | pathlib.Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], metadata: Mapping[str, Any]
) -> pathlib.Path:
    """Write an encoder's tensors and its configuration as a CLIPTextModel folder, with its projection if it has one."""
    from transformers import CLIPTextConfig

    path = pathlib.Path(path)
    made = CLIPTextConfig(**{k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")})
    whole = PROJECTION in tensors  # CLIP-G's, which is its own
    made.architectures = ["CLIPTextModelWithProjection" if whole else "CLIPTextModel"]
    made.projection_dim = len(tensors[PROJECTION]) if whole else made.projection_dim
    write_atomic(path / "config.json", made.to_json_string().encode())
    state = {k: v for k, v in make_portable(tensors).items() if whole or k != PROJECTION}
    write_safetensors(path / TEXT_ENCODER_WEIGHTS[0], state, {**encode_metadata(metadata), "format": "pt"})
    return path


def compute_encoder_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a CLIPTextModel's weights under `text_model.` keys, from its configuration."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        state = CLIPTextModel(CLIPTextConfig(**config)).state_dict()
    return {
        TEXT_PREFIX + k.removeprefix(TEXT_PREFIX): tuple(v.shape)
        for k, v in state.items()
        if not k.endswith("position_ids")
    }


def find_encoder_config(tensors: Mapping[str, Tensor], source: str, *bases: str) -> dict[str, Any]:
    """Return the configuration of an encoder: that beside its file or beside a base's that fits it, or CLIP-L's.

    Weights alone do not tell how many heads they are cut into.
    Raises AdvUnlearnError when none fits.
    """
    table = tensors.get(TEXT_PREFIX + "embeddings.token_embedding.weight")
    if table is None or table.dim() != 2:  # whoever compares it with CLIP-L's shapes says so
        return json.loads(CLIP_L_CONFIG.read_text(encoding="utf-8"))
    vocabulary, width = table.shape
    for file in [
        *(find_weights_file(place).with_name("config.json") for place in (source, *bases)),
        CLIP_L_CONFIG,
        SECOND,
    ]:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if (config.get("vocab_size"), config.get("hidden_size")) == (vocabulary, width):
            return config
    raise AdvUnlearnError(
        f"{source} is {name_clip_encoder(width, count_layers(tensors))}, {vocabulary} tokens: nothing says how many "
        "heads it has; give --base, the model or the CLIPTextModel folder that it was trained from"
    )


def find_clip_l_prefix(weights: Weights) -> str:
    """Return the prefix under which a file holds CLIP-L's text encoder.

    Known are our files and CLIPTextModel folders (with and without `text_model.`), the published trainer's files, which
    hold every tensor twice, and full Stable Diffusion 1.x and SDXL checkpoints.
    Raises AdvUnlearnError that says what the file is instead.
    """
    if homes := find_encoder_prefixes(weights):
        return homes[0]
    what = detect_weights_kind(weights.names, weights.shape)
    found = f"it is {what}" if what else f"its first tensor is {min(weights.names, default='nothing')!r}"
    raise AdvUnlearnError(
        f"{weights.source} holds no CLIP-L text encoder: {found}; give an encoder's file, a CLIPTextModel folder, or a "
        "whole Stable Diffusion 1.x or SDXL checkpoint"
    )


def find_encoder_prefixes(weights: Weights) -> list[str]:
    """Return every prefix under which a file holds a CLIP text encoder."""
    have = set(weights.names)
    layer, vision = "encoder.layers.0.layer_norm1.weight", "embeddings.patch_embedding.weight"
    return [start for start in ENCODER_PREFIXES if start + layer in have and start + vision not in have]


def map_encoder_names(weights: Weights, home: str) -> dict[str, str]:
    """Return the names that a file's text encoder has there, by its own under `text_model.`."""
    inside = tuple(home + part for part in ("encoder.", "embeddings.", "final_layer_norm."))
    names = (n for n in weights.names if n.startswith(inside) and not n.endswith("position_ids"))
    return {TEXT_PREFIX + n.removeprefix(home): n for n in names}


def extract_encoder(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors of the CLIP-L text encoder in a file, under `text_model.` keys.

    Raises AdvUnlearnError when it holds none, or holds it twice and the copies differ.
    """
    home = find_clip_l_prefix(weights)
    tensors = {name: weights.read(there) for name, there in map_encoder_names(weights, home).items()}
    for other in find_encoder_prefixes(weights):
        for name, there in map_encoder_names(weights, other).items() if other != home else ():
            if name not in tensors or not torch.equal(tensors[name], weights.read(there)):
                raise AdvUnlearnError(
                    f"{weights.source} holds its text encoder twice, and the copies differ, first in {there!r}; "
                    "save it once more from where it was trained"
                )
    return tensors


def read_encoder(path: str | pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a CLIP text encoder's tensors under `text_model.` keys, and the metadata of the file that holds them.

    Raises AdvUnlearnError when the file is missing, cannot be read, or holds no CLIP text encoder.
    """
    with open_weights(path) as weights:
        return extract_encoder(weights), weights.metadata
