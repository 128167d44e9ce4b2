"""The configuration of a CLIP text encoder: read and checked, or found by the shapes of the weights."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from .detect import TEXT_PREFIX, count_layers, name_clip_encoder
from .text_encoders import ConfigDict
from .weights import find_weights_file, get_shapes

SHAPES_FOLDER = pathlib.Path(__file__).parents[1] / "data" / "shapes"
CLIP_L_CONFIG = SHAPES_FOLDER / "sd15" / "text_encoder" / "config.json"
CLIP_G_CONFIG = SHAPES_FOLDER / "sdxl" / "text_encoder_2" / "config.json"
# The largest sizes that a text encoder's config.json may state.
CONFIG_LIMITS = {
    "hidden_size": 1 << 13,
    "intermediate_size": 1 << 15,
    "num_hidden_layers": 128,
    "num_attention_heads": 128,
    "vocab_size": 1 << 20,
    "max_position_embeddings": 1 << 13,
}


def compute_encoder_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a CLIPTextModel's weights, under `text_model.` keys, for a configuration."""
    from transformers import CLIPTextConfig, CLIPTextModel

    try:
        with torch.device("meta"):
            shapes = get_shapes(CLIPTextModel(CLIPTextConfig(**config)).state_dict())
    except Exception as error:  # transformers raises anything for a value of another type
        raise AdvUnlearnError(f"no CLIP text encoder has such a configuration ({str(error)[:200]})") from error
    return {
        TEXT_PREFIX + name.removeprefix(TEXT_PREFIX): shape
        for name, shape in shapes.items()
        if not name.endswith("position_ids")
    }


def read_encoder_config(file: pathlib.Path) -> ConfigDict:
    """Return the content of a text encoder's config.json; of a whole CLIP's the text encoder's part.

    Raises AdvUnlearnError for a file that is no such configuration, or has a size out of range.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdvUnlearnError(f"{file} cannot be read ({str(error)[:200]}); download it again") from error
    if not isinstance(config, dict):
        raise AdvUnlearnError(f"{file} is no configuration: it holds {type(config).__name__}; download it again")
    part = config.get("text_config", config)
    if not isinstance(part, dict) or "hidden_size" not in part:
        return {}  # of another kind of model, such as the UNet in whose folder a file lies
    for name, most in CONFIG_LIMITS.items():
        value = part.get(name, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise AdvUnlearnError(f"{file}: {name} is {str(value)[:40]!r}; it must be a number from 1 to {most}")
    heads = part.get("num_attention_heads", 1)
    if part["hidden_size"] % heads:
        raise AdvUnlearnError(f"{file}: hidden_size {part['hidden_size']} is not divisible by {heads} heads")
    return part


def find_encoder_config(tensors: Mapping[str, Tensor], source: str, *bases: str) -> ConfigDict:
    """Return an encoder's configuration: the config.json next to its file or to a base's if it fits, or a shipped one.

    The shapes of weights do not determine the number of attention heads. Raises AdvUnlearnError when none fits.
    """
    table = tensors.get(TEXT_PREFIX + "embeddings.token_embedding.weight")
    if table is None or table.dim() != 2:  # the comparison with CLIP-L's shapes will name what is missing
        return json.loads(CLIP_L_CONFIG.read_text(encoding="utf-8"))
    vocabulary, width = table.shape
    candidates = [find_weights_file(path).with_name("config.json") for path in (source, *bases)]
    for file in (*candidates, CLIP_L_CONFIG, CLIP_G_CONFIG):
        config = read_encoder_config(file) if file.is_file() else {}
        if (config.get("vocab_size"), config.get("hidden_size")) == (vocabulary, width):
            return config
    raise AdvUnlearnError(
        f"{source} is {name_clip_encoder(width, count_layers(tensors))}, {vocabulary} tokens: its number of attention "
        "heads is unknown; give --base, the model or the CLIPTextModel folder that it was trained from"
    )
