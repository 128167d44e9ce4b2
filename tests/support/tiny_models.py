"""Tiny models of real classes, written to disk: judges that make known decisions, and a Stable Diffusion XL."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from advunlearn import miniature
from advunlearn.files import CLIP_TOKENIZER

# As the backgrounds that the miniature draws.
COLOURS = {
    "red": (0.94, 0.55, 0.55),
    "green": (0.59, 0.86, 0.59),
    "blue": (0.59, 0.75, 0.98),
}
SIZE = 16
PREPARE = """{"image_processor_type": "%s", "do_resize": true, "size": {"height": 16, "width": 16}, "resample": 2,
"do_center_crop": false, "do_rescale": true, "rescale_factor": 0.00392156862745098, "do_normalize": true,
"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"""


def patches(colours: Sequence[str], size: int = SIZE, noise: float = 0.05, seed: int = 0) -> Tensor:
    """Return a picture (3, size, size) in [0, 1] for each colour, with some noise."""
    flat = torch.tensor([COLOURS[c] for c in colours])[:, :, None, None].expand(-1, -1, size, size)
    generator = torch.Generator().manual_seed(seed)
    return (flat + noise * torch.randn(flat.shape, generator=generator)).clamp(0, 1)


def _train(model: torch.nn.Module, loss: Callable[[Tensor, Tensor], Tensor], steps: int) -> None:
    adam, names = torch.optim.Adam(model.parameters(), lr=3e-3), list(COLOURS)
    for step in range(steps):
        target = torch.arange(24) % len(names)
        images = patches([names[i] for i in target.tolist()], noise=0.25, seed=step) * 2 - 1
        adam.zero_grad()
        loss(images, target).backward()
        adam.step()


def colour_classifier(folder: pathlib.Path, labels: Sequence[str] = tuple(COLOURS), steps: int = 60) -> pathlib.Path:
    """Write a ViT that tells red, green and blue apart after 60 steps; `labels` are their names, in this order."""
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=SIZE,
            patch_size=8,
            id2label=dict(enumerate(labels)),
            label2id={v: k for k, v in enumerate(labels)},
            hidden_dropout_prob=0.0,
        )
    )
    _train(model, lambda x, y: F.cross_entropy(model(x).logits, y), steps)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(PREPARE % "ViTImageProcessor")
    return folder


def constant_classifier(folder: pathlib.Path, logits: dict[str, float]) -> pathlib.Path:
    """Write a ResNet with the same logits for every picture."""
    torch.manual_seed(0)
    model = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=4,
            hidden_sizes=[4, 6],
            depths=[1, 1],
            layer_type="basic",
            id2label=dict(enumerate(logits)),
            label2id={v: k for k, v in enumerate(logits)},
        )
    )
    head = model.classifier[-1]
    head.weight.data.zero_()
    head.bias.data = torch.tensor(list(logits.values()))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(PREPARE % "ViTImageProcessor")
    return folder


def colour_clip(folder: pathlib.Path, steps: int = 80) -> pathlib.Path:
    """Write a CLIP that knows "a photo of a red", "... green" and "... blue", after 80 steps."""
    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(
        CLIPConfig(
            text_config=part | {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407},
            vision_config=part | {"image_size": SIZE, "patch_size": 8},
            projection_dim=8,
        )
    )
    tokenizer = CLIPTokenizer.from_pretrained(CLIP_TOKENIZER)
    text = tokenizer([f"a photo of a {c}" for c in COLOURS], padding=True, return_tensors="pt")
    _train(model, lambda x, y: F.cross_entropy(model(pixel_values=x, **text).logits_per_image, y), steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(PREPARE % "CLIPImageProcessor")
    return folder


def tiny_sdxl(folder: pathlib.Path) -> pathlib.Path:
    """Write a diffusers folder of Stable Diffusion XL's architecture, narrow and shallow, with random weights."""
    torch.manual_seed(0)
    text = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "num_attention_heads": 4}
    first = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            pad_token_id=49407,
            **text,
        )
    )
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=4,
            projection_dim=40,
            hidden_act="gelu",
            pad_token_id=0,
            **text,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=32 + 48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
    )
    vae = AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8))
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    tokenizers = [CLIPTokenizer.from_pretrained(CLIP_TOKENIZER) for _ in range(2)]
    tokenizers[1].pad_token = "!"
    StableDiffusionXLPipeline(vae, first, second, *tokenizers, unet, scheduler, add_watermarker=False).save_pretrained(
        folder
    )
    return folder


def tiny_sd(folder: pathlib.Path, depth: int = 2) -> pathlib.Path:
    """Write the miniature with a text encoder and a UNet that are narrower and shallower, with random weights.

    A training iteration takes a fifth of the miniature's time: for tests of the run around the mathematics. `depth` is
    the number of the encoder's layers and of the UNet's resolutions, 1 or 2.
    """
    torch.manual_seed(0)
    shutil.copytree(miniature.path(), folder)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": depth, "num_attention_heads": 4}
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder", **text)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16)[:depth],
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D")[:depth],
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")[:depth],
        mid_block_type=None,
        cross_attention_dim=32,
    )
    unet.save_pretrained(folder / "unet")
    return folder
