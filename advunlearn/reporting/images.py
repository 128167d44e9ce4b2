"""Image grids and image files."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import write_atomic

IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # file suffix -> Pillow's name
FRAME = (213, 94, 0)  # orange, as the bars of the report's success rates


def grid(images: Tensor, columns: int = 8, gap: int = 2, framed: Sequence[bool] = ()) -> Image.Image:
    """Arrange images (N, 3, H, W) in [0, 1] in rows on white; those marked in `framed` get an orange frame."""
    count, _, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    pixels = (images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    for i, image in enumerate(pixels):
        y = (i // columns) * (height + gap)
        x = (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = add_frame(image, FRAME) if any(framed[i : i + 1]) else image
    return Image.fromarray(sheet)


def add_frame(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return an image (H, W, 3) with a frame over its edge."""
    edge = max(2, len(image) // 32)
    framed = np.full_like(image, colour)
    framed[edge:-edge, edge:-edge] = image[edge:-edge, edge:-edge]
    return framed


def overview(rows: Mapping[str, Tensor], scale: int = 2, margin: int = 190) -> Image.Image:
    """Arrange rows of images (N, 3, H, W) below each other, each with its title on the left.

    Args:
        rows: title -> images.
        scale: enlargement, in whole pixels.
        margin: width of the titles in pixels.
    """
    gap = 6
    strips = {title: enlarge(grid(images, len(images)), scale) for title, images in rows.items()}
    width = margin + max(strip.width for strip in strips.values())
    height = sum(strip.height + gap for strip in strips.values()) - gap
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    y = 0
    for title, strip in strips.items():
        draw.multiline_text((6, y + strip.height // 2 - 18), title, fill="black", font=font)
        sheet.paste(strip, (margin, y))
        y += strip.height + gap
    return sheet


def enlarge(image: Image.Image, scale: int) -> Image.Image:
    """Enlarge an image by whole pixels."""
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def make_image_saver(folder: pathlib.Path, model: str) -> Callable[[str, Tensor], list[str]]:
    """Return a function that saves a model's images (N, 3, H, W) as folder/cases/MODEL/WHAT/NUMBER.png.

    The function takes WHAT and the images, and returns the names of the files relative to the folder.
    """

    def save_images(what: str, images: Tensor) -> list[str]:
        names = [f"cases/{model}/{what}/{case:04d}.png" for case in range(len(images))]
        for name, image in zip(names, images, strict=True):
            write_atomic(folder / name, png(grid(image[None])))
        return names

    return save_images


def png(image: Image.Image, scale: int = 1) -> bytes:
    """Return an image as PNG bytes, enlarged by whole pixels."""
    return encode_image(image, ".png", scale)


def encode_image(image: Image.Image, suffix: str, scale: int = 1) -> bytes:
    """Return an image as the bytes of a file with one of the suffixes of `IMAGE_FORMATS`, enlarged by whole pixels."""
    buffer = io.BytesIO()
    enlarge(image, scale).save(buffer, IMAGE_FORMATS[suffix], quality=95)  # PNG ignores the quality
    return buffer.getvalue()
