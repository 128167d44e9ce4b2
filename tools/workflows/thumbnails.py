"""Make workflows/NAME.jpg, 640 pixels wide, of the screenshots NAME.png that make.mjs took, and remove those.

python tools/workflows/thumbnails.py workflows
"""

from __future__ import annotations

import pathlib
import sys

from PIL import Image

WIDTH = 640


def main(folder: str) -> None:
    for path in sorted(pathlib.Path(folder).glob("*.png")):
        image = Image.open(path).convert("RGB")
        image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS).save(
            path.with_suffix(".jpg"), quality=85
        )
        path.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
