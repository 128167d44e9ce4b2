"""The user's own pictures of a concept, as the targets of attacks."""

from __future__ import annotations

import hashlib
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import AdvUnlearnError
from ..models.ddim import scale_batch
from ..models.loading import TextToImage

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class OwnImages:
    """Pictures as latents."""

    latents: Tensor  # (M, C, h, w)
    digest: str  # of the files

    def described(self) -> dict[str, Any]:
        """Return what a report says of them."""
        return {"count": len(self.latents), "sha256": self.digest}


def picture(path: pathlib.Path, width: int, height: int) -> Tensor:
    """Return a picture file (3, H, W) in [0, 1], its middle cut to the model's proportions."""
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    except (OSError, UnidentifiedImageError) as error:
        raise AdvUnlearnError(f"{path} could not be read as a picture ({error}); take it out of the folder") from error
    return torch.from_numpy(np.asarray(fitted, np.float32) / 255).permute(2, 0, 1)


@torch.no_grad()
def encoded(model: TextToImage, images: Tensor) -> Tensor:
    """Return the latents (M, C, h, w) of pictures (M, 3, H, W) in [0, 1], in the scale of the UNet."""
    vae, parts = model.vae, []
    for part in (images * 2 - 1).split(scale_batch(64, torch.empty(model.denoiser.latent_shape))):
        found = vae.encode(part.to(model.denoiser.device, vae.dtype))
        # The mean of AutoencoderKL's distribution; AutoencoderTiny gives latents.
        parts.append(found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents)
    return torch.cat(parts).float() * vae.config.scaling_factor


def load(folder: str | pathlib.Path, model: TextToImage) -> OwnImages:
    """Read every picture of a folder, in the order of their names.

    Raises AdvUnlearnError for a folder that is none or has no picture, and for a file that is no picture.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise AdvUnlearnError(f"--images {str(folder)!r}: no such folder; give one with pictures of the concept")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise AdvUnlearnError(f"--images {str(folder)!r} has no picture ({', '.join(SUFFIXES)}); put some there")
    _, height, width = model.denoiser.latent_shape
    images = torch.stack([picture(path, 8 * width, 8 * height) for path in files])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return OwnImages(encoded(model, images), digest[:16])
