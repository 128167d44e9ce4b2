"""Turn pictures into grids and files."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def grid(images: Tensor, columns: int = 8, gap: int = 2) -> Image.Image:
    """Lay pictures (N, 3, H, W) in [0, 1] out in rows on white."""
    count, _, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    pixels = (images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    for i, picture in enumerate(pixels):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    return Image.fromarray(sheet)


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


def png(image: Image.Image, scale: int = 1) -> bytes:
    """Return a picture as PNG bytes, enlarged by whole pixels."""
    return encoded(image, ".png", scale)


def encoded(image: Image.Image, ending: str, scale: int = 1) -> bytes:
    """Return a picture as the bytes of a file with one of `ENDINGS`, enlarged by whole pixels."""
    buffer = io.BytesIO()
    large = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    large.save(buffer, ENDINGS[ending], quality=95)  # which PNG has not, and passes over
    return buffer.getvalue()
