"""`advunlearn sample`: generate images."""

from __future__ import annotations

import pathlib
from argparse import Namespace

import torch
from torch import Tensor

from ...config.evaluation import EvaluateConfig
from ...config.io import ModelConfig
from ...errors import AdvUnlearnError
from ...models.ddim import ddim_sample
from ...reporting import images
from ..flags import settings
from ..inputs import load_model, load_trained_encoder, load_trained_unet
from .output import print_result


def run(args: Namespace) -> None:
    """Generate images, one row per prompt, and write them as one image file."""
    path = check_image_path(args.out)
    if args.count < 1:
        raise AdvUnlearnError(f"--count is {args.count}; it must be at least 1")
    path.parent.mkdir(parents=True, exist_ok=True)
    config = settings(EvaluateConfig, args)
    rows = images.grid(generate(args, config), args.count)
    path.write_bytes(images.encode_image(rows, path.suffix.lower(), 2))
    print_result(args, {"file": str(path), "prompts": args.prompts, "seed": config.seed}, f"wrote {path}")


def check_image_path(out: str) -> pathlib.Path:
    """Return the path of the image file. Raises AdvUnlearnError for a folder or an unknown image format."""
    path = pathlib.Path(out)
    if path.is_dir():
        raise AdvUnlearnError(f"--out {out!r} is a folder; give the name of an image file")
    if path.suffix.lower() not in images.IMAGE_FORMATS:
        raise AdvUnlearnError(f"--out {out!r}: give a name that ends in {', '.join(images.IMAGE_FORMATS)}")
    return path


def generate(args: Namespace, config: EvaluateConfig) -> Tensor:
    """Generate the images (P * count, 3, H, W), prompt by prompt."""
    model = load_model(settings(ModelConfig, args)).fit_prompts(args.prompts)
    encoder = load_trained_encoder(args.encoder, model)
    denoiser = load_trained_unet(args.unet, model)
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(args.count * len(args.prompts), *model.denoiser.latent_shape, generator=generator)
    context = model.encode([prompt for prompt in args.prompts for _ in range(args.count)], encoder)
    empty = model.encode([""], encoder)
    noise = noise.to(model.denoiser.device)
    return model.decode(ddim_sample(denoiser, context, empty, noise, config.sampling_steps, config.guidance_scale))
