"""The miniature's text encoder in the shapes of Stable Diffusion XL's two, with the same output.

- The channels are repeated (Net2Net, arXiv 1511.05641). Where the width is no multiple, the rest stays zero; embeddings
  and outputs are then centred, since layer norm subtracts the mean, and scaled, so that the variance stays the same.
- SDXL reads the output of the layer before the last, without the final norm. That layer writes the miniature's final
  norm with opposite signs to the copies of the channels, and the UNet reads their difference.
- CLIP-G has the exact GELU; a mixture of three of them is the miniature's quick GELU within 2e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats.detect import PROJECTION, TEXT_PREFIX
from .checkpoint import clip_token_ids

LAYERS = 4  # of the miniature's text encoder
TEXT_HEADS = 12
# quick_gelu(x) = sum of weight * x * Phi(scale * x), within 2e-4: a mixture of normal distributions for the logistic.
GELU_MIXTURE = ((0.098089, 0.576633), (0.525030, 0.896082), (0.376881, 1.420960))


@dataclass(frozen=True)
class EncoderShape:
    """The shape of a text encoder that the miniature's is put into."""

    width: int
    heads: int
    layers: int
    activation: str = "quick_gelu"

    @property
    def inner(self) -> int:
        """Width of the feed-forward blocks."""
        return 4 * self.width


SMALL_ENCODERS = {
    "text_encoder": EncoderShape(384, 12, LAYERS + 2),
    "text_encoder_2": EncoderShape(576, 12, LAYERS + 2),
}
WIDE_ENCODERS = {"text_encoder": EncoderShape(768, 12, 12), "text_encoder_2": EncoderShape(1280, 20, 32, "gelu")}


class Stream:
    """The channels of a wide encoder: copies of the miniature's, centred and scaled, and zeros.

    Args:
        narrow, wide: the channels of the miniature's encoder and of the wide one.
    """

    def __init__(self, narrow: int, wide: int) -> None:
        self.wide = wide
        self.copies = wide // narrow
        self.rest = wide - self.copies * narrow
        self.scale = (wide / (self.copies * narrow)) ** 0.5
        half = self.copies // 2
        self.signs = torch.tensor([1.0] * half + [-1.0] * half + [0.0] * (self.copies - 2 * half))

    def _pad(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor.new_zeros(*tensor.shape[:-1], self.rest)], -1)

    def embed(self, rows: Tensor) -> Tensor:
        """Return embeddings (V, wide) of the miniature's (V, narrow)."""
        centred = rows - rows.mean(-1, keepdim=True)
        return self._pad((centred * self.scale).repeat(1, self.copies))

    def norm(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer norm's parameters, such that it returns copies of the miniature's output."""
        return self._pad(weight.repeat(self.copies) / self.scale), self._pad(bias.repeat(self.copies))

    def read(self, matrix: Tensor) -> Tensor:
        """Return a matrix (n, wide) that reads the mean of the copies, for one (n, narrow)."""
        return self._pad(matrix.repeat(1, self.copies) / self.copies)

    def write(self, matrix: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer (wide, n) that adds to all copies, for one (narrow, n)."""
        return self.embed(matrix.T).T, self.embed(bias[None])[0]

    def write_signed(self, matrix: Tensor) -> Tensor:
        """Return a matrix (wide, n) that adds to the copies with their signs."""
        return self._pad((self.signs[:, None, None] * matrix).flatten(0, 1).T).T

    def read_signed(self, matrix: Tensor) -> Tensor:
        """Return a matrix (n, wide) that reads what `write_signed` added, for one (n, narrow)."""
        signed = (matrix[:, None] * self.signs[:, None]).flatten(1)
        return self._pad(signed / self.signs.abs().sum())


def place_heads(matrix: Tensor, heads: int, wide_heads: int, size: int) -> Tensor:
    """Return rows (heads * d, ...) at the first rows of the first wide heads, (wide_heads * size, ...)."""
    rows = matrix.unflatten(0, (heads, -1))
    placed = rows.new_zeros(wide_heads, size, *rows.shape[2:])
    placed[:heads, : rows.shape[1]] = rows
    return placed.flatten(0, 1)


def build_encoder(
    state: Mapping[str, Tensor], shape: EncoderShape, table: Tensor, dtype: torch.dtype = torch.float16
) -> dict[str, Tensor]:
    """Return the miniature's text encoder in another shape, with its projection, under `text_model.` keys.

    Args:
        state: the miniature's weights, without the prefix.
        shape: the shape; its layer before the last is the miniature's final norm, the others beyond are identities.
        table: (V, D) token embeddings, as wide as the miniature's.
        dtype: dtype of the result.
    """
    stream = Stream(table.shape[1], shape.width)
    built = {
        "embeddings.token_embedding.weight": stream.embed(table),
        "embeddings.position_embedding.weight": stream.embed(state["embeddings.position_embedding.weight"]),
        "final_layer_norm.weight": torch.ones(shape.width),
        "final_layer_norm.bias": torch.zeros(shape.width),
    }
    built = {name: tensor.to(dtype) for name, tensor in built.items()}
    generator = torch.Generator().manual_seed(0)
    for index in range(shape.layers):
        layer = identity_layer(shape, generator)
        if index < LAYERS:
            start = f"encoder.layers.{index}."
            narrow = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            layer |= build_attention(narrow, shape, stream) | build_feed_forward(narrow, shape, stream)
        elif index == shape.layers - 2:
            layer |= build_final_norm(state, shape, stream)
        built |= {f"encoder.layers.{index}.{name}": tensor.to(dtype) for name, tensor in layer.items()}
    state = {TEXT_PREFIX + name: tensor.contiguous() for name, tensor in built.items()}
    return state | {PROJECTION: torch.eye(shape.width, dtype=dtype)}


def identity_layer(shape: EncoderShape, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a layer that adds nothing: random weights before outputs that are zero, so that it can be trained."""
    layer: dict[str, Tensor] = {}
    for norm in ("layer_norm1", "layer_norm2"):
        layer |= {f"{norm}.weight": torch.ones(shape.width), f"{norm}.bias": torch.zeros(shape.width)}
    sizes = {f"self_attn.{part}_proj": (shape.width, shape.width) for part in ("q", "k", "v", "out")}
    sizes |= {"mlp.fc1": (shape.inner, shape.width), "mlp.fc2": (shape.width, shape.inner)}
    for name, size in sizes.items():
        adds = name.endswith(("out_proj", "fc2"))
        weight = torch.zeros(size) if adds else torch.randn(size, generator=generator) * 0.02
        layer |= {f"{name}.weight": weight, f"{name}.bias": torch.zeros(size[0])}
    return layer


def build_attention(narrow: Mapping[str, Tensor], shape: EncoderShape, stream: Stream) -> dict[str, Tensor]:
    """Return the attention of a layer, and the norm before it."""
    size = shape.width // shape.heads
    norm = stream.norm(narrow["layer_norm1.weight"], narrow["layer_norm1.bias"])
    built = dict(zip(("layer_norm1.weight", "layer_norm1.bias"), norm, strict=True))
    for part in "qkv":
        weight, bias = (narrow[f"self_attn.{part}_proj.{kind}"] for kind in ("weight", "bias"))
        scale = (size * TEXT_HEADS / len(weight)) ** 0.5 if part == "q" else 1.0  # logits are divided by sqrt(size)
        rows = place_heads(stream.read(weight) * scale, TEXT_HEADS, shape.heads, size)
        built[f"self_attn.{part}_proj.weight"] = rows
        built[f"self_attn.{part}_proj.bias"] = place_heads(bias * scale, TEXT_HEADS, shape.heads, size)
    weight, bias = stream.write(narrow["self_attn.out_proj.weight"], narrow["self_attn.out_proj.bias"])
    built["self_attn.out_proj.weight"] = place_heads(weight.T, TEXT_HEADS, shape.heads, size).T
    return built | {"self_attn.out_proj.bias": bias}


def build_feed_forward(narrow: Mapping[str, Tensor], shape: EncoderShape, stream: Stream) -> dict[str, Tensor]:
    """Return the feed-forward block of a layer, and the norm before it."""
    norm = stream.norm(narrow["layer_norm2.weight"], narrow["layer_norm2.bias"])
    enter, enter_bias = stream.read(narrow["mlp.fc1.weight"]), narrow["mlp.fc1.bias"]
    leave, leave_bias = stream.write(narrow["mlp.fc2.weight"], narrow["mlp.fc2.bias"])
    if shape.activation == "gelu":
        # gelu(s x) - gelu(-s x) = s x, and w x Phi(s x) = (w / s) gelu(s x).
        enter = torch.cat([enter * scale for _, scale in GELU_MIXTURE])
        enter_bias = torch.cat([enter_bias * scale for _, scale in GELU_MIXTURE])
        leave = torch.cat([leave * weight / scale for weight, scale in GELU_MIXTURE], 1)
    weights = pad_feed_forward(enter, enter_bias, leave, shape)
    return weights | {
        "mlp.fc2.bias": leave_bias,
        **dict(zip(("layer_norm2.weight", "layer_norm2.bias"), norm, strict=True)),
    }


def build_final_norm(state: Mapping[str, Tensor], shape: EncoderShape, stream: Stream) -> dict[str, Tensor]:
    """Return a feed-forward block that adds the miniature's final norm with the copies' signs.

    The activation passes a value unchanged: f(x) - f(-x) = x for GELU and quick GELU.
    """
    norm = stream.norm(state["final_layer_norm.weight"], state["final_layer_norm.bias"])
    unit = torch.eye(len(state["final_layer_norm.weight"]))
    enter = stream.read(torch.cat([unit, -unit]))
    leave = torch.cat([stream.write_signed(unit), stream.write_signed(-unit)], 1)
    names = ("layer_norm2.weight", "layer_norm2.bias")
    return pad_feed_forward(enter, torch.zeros(len(enter)), leave, shape) | dict(zip(names, norm, strict=True))


def pad_feed_forward(enter: Tensor, enter_bias: Tensor, leave: Tensor, shape: EncoderShape) -> dict[str, Tensor]:
    """Return a feed-forward block's weights, with zeros for the units that are not used."""
    more = shape.inner - len(enter)
    if more < 0:
        raise ValueError(f"{len(enter)} units do not fit into a feed-forward block of {shape.inner}")
    return {
        "mlp.fc1.weight": F.pad(enter, (0, 0, 0, more)),
        "mlp.fc1.bias": F.pad(enter_bias, (0, more)),
        "mlp.fc2.weight": F.pad(leave, (0, more)),
    }


def read_context(matrix: Tensor, shapes: Mapping[str, EncoderShape]) -> Tensor:
    """Return a matrix (n, D_l + D_g) that reads the mean of both encoders, for one (n, D) of the miniature's UNet."""
    streams = (Stream(matrix.shape[1], shape.width) for shape in shapes.values())
    return torch.cat([stream.read_signed(matrix) / len(shapes) for stream in streams], 1)


def full_table(table: Tensor) -> Tensor:
    """Return the embeddings (49408, D) of CLIP's vocabulary: the miniature's, and random ones for other tokens."""
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(49408, table.shape[1], generator=generator) * table.std()
    full[clip_token_ids()] = table
    return full


def build_encoders(
    text: Mapping[str, Tensor], shapes: Mapping[str, EncoderShape], whole_vocabulary: bool
) -> dict[str, dict[str, Tensor]]:
    """Return both text encoders in fp16, under `text_model.` keys.

    Args:
        text: the miniature's weights in fp32, without the prefix.
        shapes: the shapes by the encoders' folders in diffusers.
        whole_vocabulary: with CLIP's whole vocabulary. CLIP-G's padding, the token 0, is then embedded as the end of
            text, because the miniature pads with it.
    """
    first = text["embeddings.token_embedding.weight"]
    first = full_table(first) if whole_vocabulary else first
    second = first.clone()
    if whole_vocabulary:
        second[0] = first[-1]
    tables = dict(zip(shapes, (first, second), strict=True))
    return {part: build_encoder(text, shape, tables[part]) for part, shape in shapes.items()}
