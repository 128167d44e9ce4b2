"""Train the autoencoder (TAESD's architecture) and encode the training pictures.

    python tools/miniature/train_autoencoder.py BUILD [--steps 8000] [--width 32]

Loss: mean squared and absolute error of pixels and of their gradients, with a little noise on the latents so that
the decoder forgives a sampler's small errors, and a weak pull of each latent channel to zero mean, unit deviation.
"""

import argparse
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

from common import Run, average_into, cosine, images_of

OUT = HERE.parents[1] / "advunlearn" / "miniature" / "model" / "vae"
LAST = torch.channels_last


def build(width: int) -> AutoencoderTiny:
    """Return a fresh autoencoder, 8 x 8 x 4 latents for a 64 x 64 picture."""
    widths = (width,) * 4
    return AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths)


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vertical and the horizontal differences of neighbouring pixels."""
    return x[:, :, 1:] - x[:, :, :-1], x[..., 1:] - x[..., :-1]


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Compare pictures in [-1, 1] by value and by edges."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(y), gradients(x), strict=True))
    return 2 * F.mse_loss(y, x) + 0.3 * F.l1_loss(y, x) + 0.15 * edges


@torch.no_grad()
def psnr(vae: AutoencoderTiny, images: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB, from the mean squared error over all pictures."""
    errors = []
    for i in range(0, len(images), 128):
        x = images_of(images[i : i + 128]).contiguous(memory_format=LAST)
        y = vae.decode(vae.encode(x * 2 - 1).latents).sample.clamp(-1, 1) / 2 + 0.5
        errors.append((y - x).square().mean((1, 2, 3)))
    return round(-10 * torch.cat(errors).mean().log10().item(), 2)


@torch.no_grad()
def finish(vae: AutoencoderTiny, root: pathlib.Path) -> None:
    """Scale the latents to unit deviation, encode the training pictures, save both."""
    data = np.load(root / "train.npz")
    latents = torch.cat(
        [
            vae.encode(images_of(data["images"][i : i + 256]).contiguous(memory_format=LAST) * 2 - 1).latents
            for i in range(0, len(data["images"]), 256)
        ]
    )
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    vae.half().to(memory_format=torch.contiguous_format).save_pretrained(OUT)
    labels = {k: torch.from_numpy(data[k]) for k in ("object", "style", "background")}
    torch.save({"latents": latents * vae.config.scaling_factor, **labels}, root / "latents.pt")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    images, unseen = np.load(args.build / "train.npz")["images"], np.load(args.build / "unseen.npz")["images"]
    vae, average = (build(args.width).to(memory_format=LAST) for _ in range(2))
    average.load_state_dict(vae.state_dict())
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run(args.build / "autoencoder.ckpt", vae=vae, average=average, optimizer=optimizer, generator=g)
    for step in run.steps(args.steps):
        optimizer.param_groups[0]["lr"] = args.lr * cosine(step, args.steps)
        x = images_of(images[torch.randint(len(images), (args.batch,), generator=g).numpy()]) * 2 - 1
        if step % 4 != 3:  # crops of 40 pixels cost less than half and teach the same
            i, j = (8 * torch.randint(0, 4, (2,), generator=g)).tolist()
            x = x[:, :, i : i + 40, j : j + 40]
        x = x.contiguous(memory_format=LAST)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = vae.encoder(x)
            y = vae.decoder(z + 0.05 * torch.randn(z.shape, generator=g))
        y, z = y.float(), z.float()
        spread = z.mean((0, 2, 3)).square().mean() + (z.std((0, 2, 3)) - 1).square().mean()
        loss = reconstruction_loss(y, x) + 0.01 * spread + 0.01 * (z.abs() - 2.9).clamp(min=0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average_into(average, vae, step, 0.998)
        if (step + 1) % 500 == 0:
            run.log(step, loss=round(loss.item(), 5), psnr=psnr(average, unseen[::8]))
    run.log(args.steps, psnr=psnr(average, unseen))
    finish(average, args.build)


if __name__ == "__main__":
    main()
