"""Train the autoencoder (TAESD's architecture) and encode the training pictures.

    python tools/miniature/train_autoencoder.py BUILD [--steps 8000] [--width 32]
    python tools/miniature/train_autoencoder.py BUILD --stage decoder [--steps 6000] [--width 64]

Loss: mean squared and absolute error of pixels and of their gradients, with a little noise on the latents so that
the decoder forgives a sampler's small errors, and a weak pull of each latent channel to zero mean, unit deviation.
The second stage leaves the encoder, and with it the latents that the UNet learns, as they are: it widens the decoder
by channel duplication and trains it on.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

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
def encoded(vae: AutoencoderTiny, images: np.ndarray) -> Tensor:
    """Return the latents of all pictures, in the encoder's own scale."""
    parts = (images_of(images[i : i + 256]).contiguous(memory_format=LAST) for i in range(0, len(images), 256))
    return torch.cat([vae.encode(part * 2 - 1).latents for part in parts])


def save(vae: AutoencoderTiny) -> None:
    """Write the autoencoder in fp16."""
    vae.half().to(memory_format=torch.contiguous_format).save_pretrained(OUT)
    config = json.loads((OUT / "config.json").read_text())
    config.pop("block_out_channels", None)  # derived from the others; diffusers warns when it reads it back
    (OUT / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def finish(vae: AutoencoderTiny, root: pathlib.Path) -> None:
    """Scale the latents to unit deviation, encode the training pictures, save both."""
    data = np.load(root / "train.npz")
    latents = encoded(vae, data["images"])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    labels = {k: torch.from_numpy(data[k]) for k in ("object", "style", "background")}
    torch.save({"latents": latents * vae.config.scaling_factor, **labels}, root / "latents.pt")
    save(vae)


@torch.no_grad()
def widened(decoder: nn.Module, like: nn.Module) -> nn.Module:
    """Copy a decoder into a wider one: channels repeated, inputs divided, a little noise to tell the copies apart."""
    source = decoder.state_dict()
    for name, wide in like.state_dict().items():
        value = source[name]
        for axis in range(min(2, value.dim())):
            factor = wide.shape[axis] // value.shape[axis]
            value = value.repeat_interleave(factor, axis) / (factor if axis else 1)
        wide.copy_(value + 0.02 * value.std().nan_to_num() * torch.randn(wide.shape))
    return like


def decoder_stage(root: pathlib.Path, steps: int, width: int, batch: int, lr: float) -> None:
    """Train a wider decoder for the fixed encoder, on squared error; save both."""
    data, unseen = np.load(root / "train.npz")["images"], np.load(root / "unseen.npz")["images"]
    g = torch.Generator().manual_seed(0)
    old = AutoencoderTiny.from_pretrained(OUT, dtype=torch.float32)
    latents = encoded(old, data)
    narrow = old.config.encoder_block_out_channels
    vae, average = (
        AutoencoderTiny(
            encoder_block_out_channels=narrow,
            decoder_block_out_channels=(width,) * 4,
            scaling_factor=old.config.scaling_factor,
        ).to(memory_format=LAST)
        for _ in range(2)
    )
    for model in (vae, average):
        model.encoder.load_state_dict(old.encoder.state_dict())
    widened(old.decoder, vae.decoder)
    average.decoder.load_state_dict(vae.decoder.state_dict())
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run(root / "decoder.ckpt", vae=vae, average=average, optimizer=optimizer, generator=g)
    for step in run.steps(steps):
        optimizer.param_groups[0]["lr"] = lr * cosine(step, steps)
        i = torch.randint(len(data), (batch,), generator=g)
        x = images_of(data[i.numpy()]).contiguous(memory_format=LAST) * 2 - 1
        z = (latents[i] + 0.03 * torch.randn(latents[i].shape, generator=g)).contiguous(memory_format=LAST)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = vae.decoder(z)
        loss = F.mse_loss(y.float(), x)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        average_into(average.decoder, vae.decoder, step, 0.998)
        if (step + 1) % 500 == 0:
            run.log(step, loss=round(loss.item(), 5), psnr=psnr(average, unseen[::8]))
    run.log(steps, psnr=psnr(average, unseen))
    save(average)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--stage", choices=("both", "decoder"), default="both")
    parser.add_argument("--steps", type=int, help="default: 8000, decoder stage 6000")
    parser.add_argument("--width", type=int, help="default: 32, decoder stage 64")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    torch.manual_seed(0)
    first = args.stage == "both"
    args.steps, args.width = args.steps or (8000 if first else 6000), args.width or (32 if first else 64)
    if not first:
        decoder_stage(args.build, args.steps, args.width, batch=8, lr=6e-4)
        return
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
