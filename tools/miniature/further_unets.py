"""Make further models that share the miniature's text encoder, as fine-tunes and merges of Stable Diffusion do.

    python tools/miniature/further_unets.py fine-tune OUT [--style fluent]
    python tools/miniature/further_unets.py perturb OUT [--noise 0.1]

`fine-tune` trains the whole UNet on images of all objects in one style, with captions that name no style, so that it
draws everything in that style. The images are the miniature's own. `perturb` adds normal noise to every weight, in
standard deviations of its tensor, as a merge with unrelated models moves the weights. OUT is a folder that
`advunlearn evaluate --unet` and benchmarks/plug_and_play.py read.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from advunlearn.losses import denoising_loss
from advunlearn.miniature import captions
from advunlearn.models.ddim import ddim_sample
from advunlearn.models.denoiser import add_noise
from advunlearn.models.diffusers_denoiser import DiffusersDenoiser
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.text_encoder import frozen
from advunlearn.models.unet_files import save_unet

SAMPLING_STEPS = 20
GUIDANCE_SCALE = 3.0


@torch.no_grad()
def draw_images(model: TextToImage, style: str, repeats: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
    """Return captions without style, and the latents (N, C, h, w) of an image in that style for each."""
    subjects = [(name, template) for template in captions.PLAIN[:repeats] for name in captions.objects()]
    prompts = [captions.caption(name, template, style=style) for name, template in subjects]
    noise = torch.randn(len(prompts), *model.denoiser.latent_shape, generator=generator)
    with frozen(model.text_encoder, *model.denoiser.modules()):
        empty, conditioning = model.encode([""]), model.encode(prompts)
        parts = zip(conditioning.split(64), noise.split(64), strict=True)
        latents = [ddim_sample(model.denoiser, c, empty, x, SAMPLING_STEPS, GUIDANCE_SCALE) for c, x in parts]
    return [captions.caption(name, template) for name, template in subjects], torch.cat(latents)


def fine_tune(model: TextToImage, args: argparse.Namespace) -> Any:
    """Return the UNet, fine-tuned on images in one style."""
    generator = torch.Generator().manual_seed(args.seed)
    prompts, latents = draw_images(model, args.style, args.repeats, generator)
    with torch.no_grad():
        conditioning, empty = model.encode(prompts), model.encode([""])
    assert isinstance(model.denoiser, DiffusersDenoiser)  # the miniature's
    denoiser = model.denoiser.trainable_copy()
    denoiser.unet.requires_grad_()  # a loaded model is frozen
    alphas = denoiser.alphas_cumprod
    optimizer = torch.optim.AdamW(denoiser.unet.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = torch.randint(len(latents), (args.batch,), generator=generator)
        t = torch.randint(len(alphas), (args.batch,), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        context = conditioning[rows].clone()
        context[: args.batch // 10] = empty  # for classifier-free guidance
        predicted = denoiser.noise_pred(add_noise(latents[rows], noise, t, alphas), t, context)
        loss = denoising_loss(predicted, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    return denoiser.unet


@torch.no_grad()
def perturb(model: TextToImage, args: argparse.Namespace) -> Any:
    """Return the UNet with normal noise on every weight."""
    generator = torch.Generator().manual_seed(args.seed)
    assert isinstance(model.denoiser, DiffusersDenoiser)  # the miniature's
    unet = model.denoiser.trainable_copy().unet
    for weight in unet.parameters():
        weight += args.noise * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    return unet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fine-tune", "perturb"))
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--style", choices=captions.styles(), default="fluent")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--repeats", type=int, default=2, help="images of each object")
    parser.add_argument("--noise", type=float, default=0.1, help="in standard deviations of each tensor")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    unet = {"fine-tune": fine_tune, "perturb": perturb}[args.what](load("miniature"), args)
    save_unet(args.out, unet, {"settings": {k: v for k, v in vars(args).items() if k != "out"}})


if __name__ == "__main__":
    main()
