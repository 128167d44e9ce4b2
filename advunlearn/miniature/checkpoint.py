"""The miniature as an ordinary Stable Diffusion 1.5 checkpoint: widened exactly, for hosts that know only that shape.

A channel is repeated k times and every weight that reads it is divided by k, so each layer computes what it did before
(Net2Net, arXiv 1511.05641). Attention logits grow by sqrt(k), which the queries are divided by. The text encoder gets
identity layers up to CLIP's twelve, and seeded rows for the tokens that the miniature does not know.
"""

from __future__ import annotations

import functools
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..files import write_safetensors
from ..formats.ldm_keys import build_checkpoint_state
from . import path

LAYERS, WIDTH = 12, 768  # of SD 1.5's text encoder
METADATA = {
    "format": "pt",
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.title": "AdvUnlearn miniature",
    "modelspec.resolution": "64x64",
    "modelspec.prediction_type": "epsilon",
}
EMBEDDINGS = ("token_embedding.weight", "position_embedding.weight")


def widen(name: str, source: Tensor, shape: torch.Size) -> Tensor:
    """Repeat a weight's channels to a wider layer's shape; what it reads is divided by the repetition."""
    for axis in range(min(2, source.dim())):
        factor = shape[axis] // source.shape[axis]
        source = source.repeat_interleave(factor, axis)
        if axis == 1 and not name.endswith(EMBEDDINGS):
            source = source / factor
    return source


def widen_time_projection(source: Tensor, shape: torch.Size) -> Tensor:
    """Place the columns of the first time layer where the wider sinusoidal embedding has the same frequencies."""
    half, wide = source.shape[1] // 2, shape[1] // 2
    placed = source.new_zeros(source.shape[0], shape[1])
    columns = torch.arange(half) * (wide // half)
    placed[:, columns], placed[:, wide + columns] = source[:, :half], source[:, half:]
    return placed.repeat_interleave(shape[0] // source.shape[0], 0)


def widened(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return a module's weights in the shapes of a wider one, computing the same."""
    out = {}
    for name, tensor in state.items():
        if name == "time_embedding.linear_1.weight":
            out[name] = widen_time_projection(tensor.float(), shapes[name])
            continue
        out[name] = widen(name, tensor.float(), shapes[name])
        if ".to_q." in name or ".q_proj." in name:
            reads = name if name.endswith("weight") else name.removesuffix("bias") + "weight"
            out[name] /= (shapes[reads][0] // state[reads].shape[0]) ** 0.5
    return out


def text_state(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], rows: Tensor) -> dict[str, Tensor]:
    """Return the text encoder's weights, twelve layers deep, with CLIP's whole vocabulary.

    Args:
        state: the narrow encoder's weights, without a prefix.
        shapes: the wide encoder's shapes.
        rows: (V,) where each of the narrow vocabulary's tokens stands in CLIP's.
    """
    table = state["embeddings.token_embedding.weight"].float()
    own = {name: tensor for name, tensor in state.items() if "token_embedding" not in name}
    out = widened(own, shapes)
    wide = table.repeat_interleave(WIDTH // table.shape[1], 1)
    generator, shape = torch.Generator().manual_seed(0), shapes["embeddings.token_embedding.weight"]
    full = torch.randn(shape, generator=generator) * table.std()
    full[rows] = wide
    out["embeddings.token_embedding.weight"] = full
    for name, size in shapes.items():
        if name not in out:  # a layer the miniature does not have: with nothing added to the residual it is an identity
            norm = "layer_norm" in name and name.endswith("weight")
            written = name.endswith(("out_proj.weight", "fc2.weight")) or name.endswith("bias")
            out[name] = (
                torch.ones(size)
                if norm
                else torch.zeros(size)
                if written
                else torch.randn(size, generator=generator) * 0.02
            )
    return out


def token_rows() -> Tensor:
    """Return where each of the miniature's tokens stands in CLIP's vocabulary, (V,)."""
    from transformers import CLIPTokenizer

    from ..models.loading import CLIP_TOKENIZER

    small, full = (CLIPTokenizer.from_pretrained(f).get_vocab() for f in (path() / "tokenizer", CLIP_TOKENIZER))
    return torch.tensor([full[token] for token, _ in sorted(small.items(), key=lambda item: item[1])])


def _shapes(module: Any) -> dict[str, torch.Size]:
    return {name.removeprefix("text_model."): t.shape for name, t in module.state_dict().items()}


def wide_modules() -> tuple[Any, Any, Any]:
    """Return the wide UNet, text encoder and autoencoder, with weights that mean nothing yet."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel.load_config(path() / "unet")
    vae = AutoencoderTiny.load_config(path() / "vae")
    text = CLIPTextConfig.from_pretrained(path() / "text_encoder").to_dict()
    text |= {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "vocab_size": 49408,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    return (
        UNet2DConditionModel.from_config({**unet, "block_out_channels": (320, 640), "cross_attention_dim": WIDTH}),
        CLIPTextModel(CLIPTextConfig(**text)),
        AutoencoderTiny.from_config(
            {**vae, "encoder_block_out_channels": (64,) * 4, "decoder_block_out_channels": (64,) * 4}
        ),
    )


@functools.cache
def wide_shapes() -> tuple[dict[str, torch.Size], ...]:
    """Return the shapes of the wide UNet, text encoder and autoencoder."""
    with torch.device("meta"):
        unet, text, vae = (_shapes(module) for module in wide_modules())
    return unet, {k: v for k, v in text.items() if not k.endswith("position_ids")}, vae


def wide_states() -> tuple[dict[str, Tensor], ...]:
    """Return the weights of the wide UNet, text encoder (without a prefix) and autoencoder, in fp16."""
    from ..models.loading import load

    model = load("miniature")
    unet_shapes, text_shapes, vae_shapes = wide_shapes()
    text = {k.removeprefix("text_model."): v for k, v in model.text_encoder.state_dict().items()}
    text = {k: v for k, v in text.items() if not k.endswith("position_ids")}
    states = (
        widened(model.denoiser.modules()[0].state_dict(), unet_shapes),
        text_state(text, text_shapes, token_rows()),
        widened(model.vae.state_dict(), vae_shapes),
    )
    return tuple({name: tensor.half().contiguous() for name, tensor in state.items()} for state in states)


def checkpoint() -> dict[str, Tensor]:
    """Return the whole miniature under the keys of a Stable Diffusion 1.5 checkpoint, in fp16, TAESD inside.

    A host's latents are 1 / 0.18215 of the UNet's; TAESD's scale turns them into what the miniature's decoder reads.
    """
    from diffusers import AutoencoderTiny

    unet, text, vae = wide_states()
    return build_checkpoint_state(unet, text, vae, AutoencoderTiny.load_config(path() / "vae")["scaling_factor"])


def write(file: str | pathlib.Path) -> pathlib.Path:
    """Write the checkpoint, about 490 MB; it loads wherever an SD 1.5 checkpoint does."""
    return write_safetensors(file, checkpoint(), METADATA)


def write_folder(folder: str | pathlib.Path) -> pathlib.Path:
    """Write the same weights as a diffusers folder, in fp16, for whatever reads those; return it."""
    from ..models.loading import CLIP_TOKENIZER

    to = pathlib.Path(folder)
    for name, module, state in zip(("unet", "text_encoder", "vae"), wide_modules(), wide_states(), strict=True):
        prefix = "text_model." if any(k.startswith("text_model.") for k in module.state_dict()) else ""
        buffers = {k: v for k, v in module.state_dict().items() if k.endswith("position_ids")}
        module.half().load_state_dict({**buffers, **{prefix + k: v for k, v in state.items()}})
        module.save_pretrained(to / name)
    shutil.copytree(CLIP_TOKENIZER, to / "tokenizer", dirs_exist_ok=True)
    shutil.copytree(path() / "scheduler", to / "scheduler", dirs_exist_ok=True)
    shutil.copyfile(path() / "model_index.json", to / "model_index.json")
    return to
