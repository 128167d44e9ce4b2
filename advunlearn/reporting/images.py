"""Image grids and image files."""

from __future__ import annotations

import io
import math
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


def draw_side_by_side(
    titles: Sequence[str], blocks: Sequence[Tensor], framed: Sequence[Sequence[bool]], side: int = 256
) -> Image.Image:
    """Arrange blocks of images (N, 3, H, W) next to each other, each as a square grid under a title of two lines.

    Args:
        titles: one for each block; what exceeds the block's width is cut.
        blocks: all with the same number and size of images.
        framed: the images of each block that get an orange frame around them.
        side: least width of an image in pixels; narrower ones are enlarged by a whole factor.
    """
    scale = math.ceil(side / blocks[0].shape[-1])
    height, width = (size * scale for size in blocks[0].shape[-2:])
    frame, gap = width // 64, width // 20
    columns = math.ceil(math.sqrt(len(blocks[0])))
    block = columns * (width + 2 * frame)
    font = ImageFont.load_default(block // 20)  # read on a node, which shows the sheet at less than half its size
    head, margin = 3 * block // 20, block // 60
    rows = math.ceil(len(blocks[0]) / columns)
    sheet = Image.new("RGB", (len(blocks) * (block + gap) - gap, head + rows * (height + 2 * frame)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (title, images) in enumerate(zip(titles, blocks, strict=True)):
        left = k * (block + gap)
        lines = [cut_text(line, font, block - 2 * margin) for line in title.split("\n")[:2]]
        draw.multiline_text((left + margin, margin), "\n".join(lines), fill="black", font=font)
        for i, image in enumerate(images):
            x, y = left + i % columns * (width + 2 * frame), head + i // columns * (height + 2 * frame)
            if any(framed[k][i : i + 1]):
                draw.rectangle((x, y, x + width + 2 * frame - 1, y + height + 2 * frame - 1), FRAME)
            sheet.paste(enlarge(grid(image[None]), scale), (x + frame, y + frame))
    return sheet


def cut_text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a text of at most a width in pixels, with dots in place of its end."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


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
