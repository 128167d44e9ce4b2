"""The miniature as a Stable Diffusion XL model: a small diffusers folder, and a wide checkpoint for hosts.

Both text encoders are the miniature's, in the shapes of `sdxl_encoders`, and the UNet reads the mean of the two. The
pooled output and the size conditioning have no effect, because the miniature has neither.

The folder's UNet is the miniature's. The checkpoint has the layers of Segmind Vega, in two levels of three blocks; the
blocks that the miniature lacks return their input. At 320 channels SDXL's layouts have five attention heads of 64 and
not eight: those layers are fitted to the miniature's (`tools/miniature/fit_heads.py`), so that the images are close to
the miniature's but not equal.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..files import TEXT_ENCODER_WEIGHTS, UNET_WEIGHTS
from ..formats.ldm_keys import build_sdxl_checkpoint_state
from ..formats.tensors import write_safetensors
from ..formats.text_encoders import PROJECTION, write_encoder_folder
from . import path
from .checkpoint import METADATA, wide_shapes, widen, widen_state, widen_time_projection, without_prefix
from .sdxl_encoders import SMALL_ENCODERS, WIDE_ENCODERS, EncoderShape, build_encoders, place_heads, read_context

State = dict[str, Tensor]

UNET_HEADS = 8  # of each attention of the miniature's UNet
HEAD_CHANNELS = 64  # of the checkpoint
SIZE_EMBEDDING = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
CHECKPOINT_UNET: dict[str, Any] = {
    **SIZE_EMBEDDING,
    "block_out_channels": (320, 640),
    "layers_per_block": 3,
    "attention_head_dim": (5, 10),
    "use_linear_projection": True,
    "transformer_layers_per_block": [[0, 0, 1], [1, 2, 2]],
    "reverse_transformer_layers_per_block": [[1, 0, 0, 1], [1, 1, 0, 0]],
}
# The checkpoint's block for each of the miniature's that has another number there. The others return their input.
MOVED = {
    "down_blocks.0.resnets.0": "down_blocks.0.resnets.2",
    "down_blocks.0.attentions.0": "down_blocks.0.attentions.2",
    "up_blocks.0.resnets.1": "up_blocks.0.resnets.3",
    "up_blocks.0.attentions.1": "up_blocks.0.attentions.3",
}


def read_miniature() -> tuple[State, State, State]:
    """Return the miniature's UNet, text encoder (without a prefix) and autoencoder, in fp32."""
    from safetensors.torch import load_file

    unet = load_file(path() / "unet" / UNET_WEIGHTS[0])
    text = without_prefix(load_file(path() / "text_encoder" / TEXT_ENCODER_WEIGHTS[0]))
    vae = load_file(path() / "vae" / UNET_WEIGHTS[0])
    unet, text, vae = ({name: tensor.float() for name, tensor in state.items()} for state in (unet, text, vae))
    return unet, text, vae


def make_unet(shapes: Mapping[str, EncoderShape], changes: Mapping[str, Any]) -> Any:
    """Return a UNet on the meta device: the miniature's configuration with SDXL's conditioning and `changes`."""
    from diffusers import UNet2DConditionModel

    pooled = shapes["text_encoder_2"].width
    conditioning = {
        **SIZE_EMBEDDING,
        "cross_attention_dim": sum(shape.width for shape in shapes.values()),
        "projection_class_embeddings_input_dim": pooled + 6 * SIZE_EMBEDDING["addition_time_embed_dim"],  # type: ignore[operator]
    }
    config = UNet2DConditionModel.load_config(path() / "unet")
    with torch.device("meta"):
        return UNet2DConditionModel.from_config({**config, **conditioning, **changes})


def build_small_unet(unet: State, expected: Mapping[str, Tensor]) -> State:
    """Return the miniature's UNet with SDXL's conditioning, which reads the mean of both encoders."""
    state = {name: torch.zeros(tensor.shape) for name, tensor in expected.items() if name.startswith("add_embedding.")}
    for name, tensor in unet.items():
        state[name] = read_context(tensor, SMALL_ENCODERS) if _reads_context(name) else tensor
    return state


def _reads_context(name: str) -> bool:
    return name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))


def build_wide_unet(unet: State, expected: Mapping[str, Tensor]) -> State:
    """Return the checkpoint's UNet under diffusers' names, without the attentions that have no layers."""
    from safetensors.torch import load_file

    fitted = load_file(path().parent / "sdxl" / TEXT_ENCODER_WEIGHTS[0])
    state = {}
    for name, tensor in (unet | {name: tensor.float() for name, tensor in fitted.items()}).items():
        wide = _move(name)
        state[wide] = widen_unet_weight(name, tensor, expected[wide].shape, name in fitted)
    for name, tensor in expected.items():
        module = name.rpartition(".")[0]
        if name not in state and not _is_empty_attention(name, expected):
            state[name] = _fill(module, name, tensor.shape)
    return state


def _move(name: str) -> str:
    parts = name.split(".")
    block = ".".join(parts[:4])
    return ".".join([MOVED.get(block, block), *parts[4:]])


def _is_empty_attention(name: str, expected: Mapping[str, Tensor]) -> bool:
    start, found, rest = name.partition(".attentions.")
    layers = f"{start}.attentions.{rest.partition('.')[0]}.transformer_blocks."
    return bool(found) and not start.startswith("mid") and not any(other.startswith(layers) for other in expected)


def _fill(module: str, name: str, shape: torch.Size) -> Tensor:
    """Return a weight of a block that returns its input, of a concatenated one the first half."""
    weight = torch.zeros(shape)
    if name.endswith("conv_shortcut.weight"):
        weight[:, : shape[0], 0, 0] = torch.eye(shape[0])
    elif "norm" in module.rpartition(".")[2] and name.endswith("weight"):
        weight += 1
    return weight


def widen_unet_weight(name: str, tensor: Tensor, shape: torch.Size, is_fitted: bool) -> Tensor:
    """Return a weight of the miniature's UNet for the checkpoint's, which computes the same function.

    Args:
        name: its name in the miniature.
        tensor: the weight, or the fitted one of an attention with five heads.
        shape: the checkpoint's.
        is_fitted: whether it is a fitted one, whose heads have their size already.
    """
    if name == "time_embedding.linear_1.weight":
        return widen_time_projection(tensor, shape)
    if name.endswith((".proj_in.weight", ".proj_out.weight")):
        tensor = tensor[:, :, 0, 0]  # a 1 x 1 convolution there, a linear layer here
    kind = name.removesuffix(".weight").rpartition(".to_")[2]
    if ".attn" not in name or kind not in ("q", "k", "v", "out.0"):
        return widen(name, tensor, shape)
    heads = shape[0 if kind != "out.0" else 1] // HEAD_CHANNELS
    if kind == "out.0":
        columns = tensor if is_fitted else place_heads(tensor.T, UNET_HEADS, heads, HEAD_CHANNELS).T
        return columns.repeat_interleave(shape[0] // len(columns), 0)
    rows = (
        read_context(tensor, WIDE_ENCODERS)
        if _reads_context(name)
        else widen(name, tensor, torch.Size((len(tensor), shape[1])))
    )
    if is_fitted:
        return rows
    scale = (HEAD_CHANNELS * UNET_HEADS / len(tensor)) ** 0.5 if kind == "q" else 1.0  # logits are divided by its root
    return place_heads(rows * scale, UNET_HEADS, heads, HEAD_CHANNELS)


def write_sdxl_folder(folder: str | pathlib.Path) -> pathlib.Path:
    """Write the small form as a diffusers folder of SDXL, in fp16, about 80 MB; return the folder."""
    folder = pathlib.Path(folder)
    unet, text, _ = read_miniature()
    module = make_unet(SMALL_ENCODERS, {})
    state = build_small_unet(unet, module.state_dict())
    module.load_state_dict({name: tensor.half() for name, tensor in state.items()}, assign=True)
    module.save_pretrained(folder / "unet")
    config = json.loads((path() / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    for part, tensors in build_encoders(text, SMALL_ENCODERS, whole_vocabulary=False).items():
        if part == "text_encoder":
            del tensors[PROJECTION]
        write_encoder_folder(folder / part, tensors, config | describe_encoder(SMALL_ENCODERS[part]), {})
    for name in ("tokenizer", "scheduler", "vae"):
        shutil.copytree(path() / name, folder / name, dirs_exist_ok=True)
    shutil.copytree(path() / "tokenizer", folder / "tokenizer_2", dirs_exist_ok=True)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": False,
        "add_watermarker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return folder


def describe_encoder(shape: EncoderShape) -> dict[str, object]:
    """Return what a text encoder's configuration says about its shape."""
    return {
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "projection_dim": shape.width,
        "hidden_act": shape.activation,
    }


def build_checkpoint() -> State:
    """Return the wide form under the names of an SDXL checkpoint, in fp16, with TAESD as autoencoder."""
    from diffusers import AutoencoderTiny

    unet, text, vae = read_miniature()
    wide = build_wide_unet(unet, make_unet(WIDE_ENCODERS, CHECKPOINT_UNET).state_dict())
    encoders = build_encoders(text, WIDE_ENCODERS, whole_vocabulary=True)
    scale = AutoencoderTiny.load_config(path() / "vae")["scaling_factor"]
    wide_vae = widen_state(vae, wide_shapes()[2])
    halved = [{name: tensor.half() for name, tensor in state.items()} for state in (wide, wide_vae)]
    clip_l, clip_g = encoders.values()
    return build_sdxl_checkpoint_state(halved[0], halved[1], clip_l, clip_g, scale)


def write_sdxl_checkpoint(file: str | pathlib.Path) -> pathlib.Path:
    """Write the checkpoint, about 2.1 GB; ComfyUI loads it as an SDXL model, Segmind Vega."""
    metadata = METADATA | {
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.title": "AdvUnlearn miniature SDXL",
    }
    return write_safetensors(file, build_checkpoint(), metadata)
