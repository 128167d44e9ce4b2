"""Turn pictures into grids and files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor


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


def png(image: Image.Image, scale: int = 1) -> bytes:
    """Return a picture as PNG bytes, enlarged by whole pixels."""
    buffer = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()
