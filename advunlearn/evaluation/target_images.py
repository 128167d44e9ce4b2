"""A user's own images of a concept, as the targets of attacks."""

from __future__ import annotations

import hashlib
import pathlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import AdvUnlearnError
from ..models.ddim import scale_batch
from ..models.loading import TextToImage

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class TargetImages:
    """Images as latents."""

    latents: Tensor  # (M, C, h, w)
    digest: str  # hash of the files

    def describe(self) -> dict[str, object]:
        """Return the entry of the report."""
        return {"count": len(self.latents), "sha256": self.digest}


def read_image(path: pathlib.Path, width: int, height: int) -> Tensor:
    """Return an image file (3, H, W) in [0, 1], upright, cropped in the middle to the model's proportions."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(convert_to_rgb(upright), (width, height), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # whatever Pillow's readers raise
        raise AdvUnlearnError(f"{path} could not be read as an image ({error}); remove it from the folder") from error
    return torch.from_numpy(np.asarray(fitted, np.float32) / 255).permute(2, 0, 1)


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB: 16 bits are scaled to 8 (Pillow clips them), what is transparent becomes white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32) / 257  # 65,535 becomes 255
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image.convert("RGB")


@torch.no_grad()
def encode_images(model: TextToImage, images: Tensor) -> Tensor:
    """Return the latents (M, C, h, w) of images (M, 3, H, W) in [0, 1], scaled for the UNet."""
    vae = model.vae
    parts = []
    for part in (images * 2 - 1).split(scale_batch(64, torch.empty(model.denoiser.latent_shape))):
        encoded = vae.encode(part.to(model.denoiser.device, vae.dtype))
        # The mean of AutoencoderKL's distribution; AutoencoderTiny returns latents.
        parts.append(encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents)
    return torch.cat(parts).float() * vae.config.scaling_factor


def load_target_images(folder: str | pathlib.Path, model: TextToImage) -> TargetImages:
    """Read all images of a folder, sorted by name.

    Raises AdvUnlearnError for a missing folder, a folder without images, and a file that is not an image.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise AdvUnlearnError(f"--images {str(folder)!r}: no such folder; give one with images of the concept")
    # Hidden files are no images: macOS puts ._NAME.png beside NAME.png on some drives.
    files = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise AdvUnlearnError(f"--images {str(folder)!r} has no image ({', '.join(IMAGE_SUFFIXES)}); put some there")
    _, height, width = model.denoiser.latent_shape
    images = torch.stack([read_image(path, 8 * width, 8 * height) for path in files])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return TargetImages(encode_images(model, images), digest[:16])
