"""Export the miniature as a Stable Diffusion 1.5 checkpoint, for hosts that support only that architecture.

The model is widened exactly: a channel is repeated k times and every weight that reads it is divided by k, so that each
layer computes the same function (Net2Net, arXiv 1511.05641). Attention logits would grow by sqrt(k), so the queries are
divided by it. The text encoder gets identity layers up to CLIP's twelve, and random embeddings, from a fixed seed, for
the tokens outside the miniature's vocabulary.
"""

from __future__ import annotations

import functools
import pathlib
import shutil
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..files import CLIP_TOKENIZER, TEXT_ENCODER_WEIGHTS, UNET_WEIGHTS
from ..formats.ldm_keys import build_checkpoint_state
from ..formats.tensors import write_safetensors
from ..formats.text_encoders import write_encoder_folder
from . import path

Shapes = Mapping[str, torch.Size]

# Stable Diffusion 1.5's text encoder.
NUM_LAYERS = 12
HIDDEN_SIZE = 768
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
    """Repeat a weight's channels up to the shape of a wider layer, and divide by the repetition along its inputs."""
    for axis in range(min(2, source.dim())):
        factor = shape[axis] // source.shape[axis]
        source = source.repeat_interleave(factor, axis)
        if axis == 1 and not name.endswith(EMBEDDINGS):
            source = source / factor
    return source


def widen_time_projection(source: Tensor, shape: torch.Size) -> Tensor:
    """Widen the first layer of the time embedding.

    The wider sinusoidal embedding has more frequencies; the narrow one's columns go to the frequencies they share.
    """
    half = source.shape[1] // 2
    wide_half = shape[1] // 2
    widened = source.new_zeros(source.shape[0], shape[1])
    columns = torch.arange(half) * (wide_half // half)
    widened[:, columns] = source[:, :half]
    widened[:, wide_half + columns] = source[:, half:]
    return widened.repeat_interleave(shape[0] // source.shape[0], 0)


def widen_state(state: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """Return a module's weights, in fp32, for a wider module that computes the same function."""
    wide = {}
    for name, tensor in state.items():
        if name == "time_embedding.linear_1.weight":
            wide[name] = widen_time_projection(tensor.float(), shapes[name])
            continue
        wide[name] = widen(name, tensor.float(), shapes[name])
        if ".to_q." in name or ".q_proj." in name:
            weight = name if name.endswith("weight") else name.removesuffix("bias") + "weight"
            wide[name] /= (shapes[weight][0] // state[weight].shape[0]) ** 0.5
    return wide


def widen_text_encoder(state: Mapping[str, Tensor], shapes: Shapes, token_ids: Tensor) -> dict[str, Tensor]:
    """Return the text encoder's weights with CLIP's twelve layers and full vocabulary.

    Args:
        state: the narrow encoder's weights, without the prefix `text_model.`.
        shapes: the wide encoder's shapes.
        token_ids: (V,) id in CLIP's vocabulary of each token of the narrow vocabulary.
    """
    table = state["embeddings.token_embedding.weight"].float()
    wide = widen_state({name: tensor for name, tensor in state.items() if "token_embedding" not in name}, shapes)
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(shapes["embeddings.token_embedding.weight"], generator=generator) * table.std()
    full[token_ids] = table.repeat_interleave(HIDDEN_SIZE // table.shape[1], 1)
    wide["embeddings.token_embedding.weight"] = full
    missing = {name: shape for name, shape in shapes.items() if name not in wide}
    return wide | {name: _identity_weight(name, shape, generator) for name, shape in missing.items()}


def _identity_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return a weight of an additional layer that adds nothing to the residual stream, so that it is the identity."""
    if "layer_norm" in name and name.endswith("weight"):
        return torch.ones(shape)
    if name.endswith(("out_proj.weight", "fc2.weight", "bias")):
        return torch.zeros(shape)
    return torch.randn(shape, generator=generator) * 0.02


def clip_token_ids() -> Tensor:
    """Return the id in CLIP's vocabulary of each token of the miniature's vocabulary, (V,)."""
    from transformers import CLIPTokenizer

    small = CLIPTokenizer.from_pretrained(path() / "tokenizer").get_vocab()
    full = CLIPTokenizer.from_pretrained(CLIP_TOKENIZER).get_vocab()
    return torch.tensor([full[token] for token in sorted(small, key=small.__getitem__)])


def wide_modules() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the wide UNet, text encoder and autoencoder with random weights."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel.load_config(path() / "unet")
    vae = AutoencoderTiny.load_config(path() / "vae")
    text = CLIPTextConfig.from_pretrained(path() / "text_encoder").to_dict() | {
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 4 * HIDDEN_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "vocab_size": 49408,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    channels = {"encoder_block_out_channels": (64,) * 4, "decoder_block_out_channels": (64,) * 4}
    return (
        UNet2DConditionModel.from_config(
            {**unet, "block_out_channels": (320, 640), "cross_attention_dim": HIDDEN_SIZE}
        ),
        CLIPTextModel(CLIPTextConfig(**text)),
        AutoencoderTiny.from_config({**vae, **channels}),
    )


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state without transformers' prefix `text_model.`, its projection and its position ids."""
    names = {name: name.removeprefix("text_model.") for name in state}
    skipped = ("position_ids", "text_projection.weight")
    return {bare: state[name] for name, bare in names.items() if not name.endswith(skipped)}


@functools.cache
def wide_shapes() -> tuple[Shapes, Shapes, Shapes]:
    """Return the shapes of the wide UNet, text encoder and autoencoder."""
    with torch.device("meta"):
        states = [without_prefix(module.state_dict()) for module in wide_modules()]
    unet, text, vae = ({name: tensor.shape for name, tensor in state.items()} for state in states)
    return unet, text, vae


def wide_states() -> tuple[dict[str, Tensor], ...]:
    """Return the weights of the wide UNet, text encoder (without a prefix) and autoencoder, in fp16."""
    from safetensors.torch import load_file

    unet_shapes, text_shapes, vae_shapes = wide_shapes()
    text = without_prefix(load_file(path() / "text_encoder" / TEXT_ENCODER_WEIGHTS[0]))
    states = (
        widen_state(load_file(path() / "unet" / UNET_WEIGHTS[0]), unet_shapes),
        widen_text_encoder(text, text_shapes, clip_token_ids()),
        widen_state(load_file(path() / "vae" / UNET_WEIGHTS[0]), vae_shapes),
    )
    return tuple({name: tensor.half().contiguous() for name, tensor in state.items()} for state in states)


def checkpoint() -> dict[str, Tensor]:
    """Return the miniature under the keys of a Stable Diffusion 1.5 checkpoint, in fp16, with TAESD as autoencoder.

    A host scales latents by 0.18215; TAESD's own scale turns them back into the input of the miniature's decoder.
    """
    from diffusers import AutoencoderTiny

    unet, text, vae = wide_states()
    return build_checkpoint_state(unet, text, vae, AutoencoderTiny.load_config(path() / "vae")["scaling_factor"])


def write_checkpoint(file: str | pathlib.Path) -> pathlib.Path:
    """Write the checkpoint, about 490 MB; any loader of Stable Diffusion 1.5 checkpoints reads it."""
    return write_safetensors(file, checkpoint(), METADATA)


def write_folder(folder: str | pathlib.Path) -> pathlib.Path:
    """Write the same weights as a diffusers folder, in fp16, for transformers 4 and 5; return the folder."""
    folder = pathlib.Path(folder)
    with torch.device("meta"):  # only their configurations are needed
        unet, text_encoder, vae = wide_modules()
    unet_state, text_state, vae_state = wide_states()
    for name, module, state in (("unet", unet, unet_state), ("vae", vae, vae_state)):
        module.save_config(folder / name)  # type: ignore[operator]
        write_safetensors(folder / name / UNET_WEIGHTS[0], state, {"format": "pt"})
    write_encoder_folder(folder / "text_encoder", text_state, text_encoder.config.to_dict(), {})  # type: ignore[operator,union-attr]
    shutil.copytree(CLIP_TOKENIZER, folder / "tokenizer", dirs_exist_ok=True)
    shutil.copytree(path() / "scheduler", folder / "scheduler", dirs_exist_ok=True)
    shutil.copyfile(path() / "model_index.json", folder / "model_index.json")
    return folder
