"""Make docs/banner.png, the 21:9 banner of the Comfy Registry's listing, from the picture of `advunlearn demo`.

    python tools/listing/banner.py docs/demo.png docs/banner.png

Its rows are two of docs/demo.png: the original model, and the text encoder of AdvUnlearn under attack.
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw, ImageFont

SIZE = (1260, 540)
LEFT, TILE, PITCH, STEP = 190, 128, 132, 134  # of docs/demo.png: its first picture, and the size and distance of all
ROWS = {0: '"a church"', 6: '"a church", erased by AdvUnlearn, then attacked'}
COLUMNS = (0, 1, 2, 5)
SCALE = 1.45


def main(source: str, target: str) -> None:
    demo = Image.open(source).convert("RGB")
    banner = Image.new("RGB", SIZE, "#1f2937")
    draw = ImageDraw.Draw(banner)
    draw.text((40, 44), "AdvUnlearn", fill="#e5e7eb", font=ImageFont.load_default(52))
    draw.text((40, 112), "concept erasure that\nwithstands attacks", fill="#93c5fd", font=ImageFont.load_default(26))
    draw.text((40, 480), "drawn by a 64-pixel miniature", fill="#9ca3af", font=ImageFont.load_default(18))
    side = round(TILE * SCALE)
    for k, (row, text) in enumerate(ROWS.items()):
        y = 34 + k * 248
        draw.text((410, y), text, fill="#e5e7eb", font=ImageFont.load_default(24))
        for n, column in enumerate(COLUMNS):
            x, top = LEFT + column * PITCH, row * STEP
            tile = demo.crop((x, top, x + TILE, top + TILE)).resize((side, side), Image.Resampling.LANCZOS)
            banner.paste(tile, (410 + n * (side + 16), y + 36))
    banner.save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
