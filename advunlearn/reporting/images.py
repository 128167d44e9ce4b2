"""Turn pictures into grids and files."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import write_atomic

ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

FRAME = (213, 94, 0)  # as the bars of what is bad


def grid(images: Tensor, columns: int = 8, gap: int = 2, framed: Sequence[bool] = ()) -> Image.Image:
    """Lay pictures (N, 3, H, W) in [0, 1] out in rows on white; those `framed` with an orange edge."""
    count, _, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    pixels = (images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    for i, picture in enumerate(pixels):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = framed_in(picture, FRAME) if any(framed[i : i + 1]) else picture
    return Image.fromarray(sheet)


def framed_in(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return a picture (H, W, 3) with a coloured edge."""
    edge = max(2, len(picture) // 32)
    out = np.full_like(picture, colour)
    out[edge:-edge, edge:-edge] = picture[edge:-edge, edge:-edge]
    return out


def overview(rows: Mapping[str, Tensor], scale: int = 2, margin: int = 190) -> Image.Image:
    """Lay rows of pictures out under each other, each with its title on the left."""
    strips = {title: grid(images, len(images)) for title, images in rows.items()}
    strips = {t: s.resize((s.width * scale, s.height * scale), Image.Resampling.NEAREST) for t, s in strips.items()}
    gap, width = 6, margin + max(s.width for s in strips.values())
    sheet = Image.new("RGB", (width, sum(s.height + gap for s in strips.values()) - gap), "white")
    pen, font, y = ImageDraw.Draw(sheet), ImageFont.load_default(16), 0
    for title, strip in strips.items():
        pen.multiline_text((6, y + strip.height // 2 - 18), title, fill="black", font=font)
        sheet.paste(strip, (margin, y))
        y += strip.height + gap
    return sheet


def keeper(folder: pathlib.Path, model: str) -> Callable[[str, Tensor], list[str]]:
    """Return what writes the pictures (N, 3, H, W) of a model's cases to folder/cases/model/WHAT/NUMBER.png.

    It returns their names in the folder.
    """

    def keep(what: str, images: Tensor) -> list[str]:
        names = [f"cases/{model}/{what}/{case:04d}.png" for case in range(len(images))]
        for name, image in zip(names, images, strict=True):
            write_atomic(folder / name, png(grid(image[None])))
        return names

    return keep


def png(image: Image.Image, scale: int = 1) -> bytes:
    """Return a picture as PNG bytes, enlarged by whole pixels."""
    return encoded(image, ".png", scale)


def encoded(image: Image.Image, ending: str, scale: int = 1) -> bytes:
    """Return a picture as the bytes of a file with one of `ENDINGS`, enlarged by whole pixels."""
    buffer = io.BytesIO()
    large = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    large.save(buffer, ENDINGS[ending], quality=95)  # which PNG has not, and passes over
    return buffer.getvalue()
