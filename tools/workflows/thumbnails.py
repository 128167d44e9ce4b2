"""Make the pictures we ship of the screenshots that make.mjs took in a folder, and remove those.

    python tools/workflows/thumbnails.py workflows web/docs

NAME.png becomes workflows/NAME.jpg, 640 pixels wide, and nodes/NODE.png becomes web/docs/NODE.jpg.
"""

from __future__ import annotations

import pathlib
import sys

from PIL import Image

WIDTH = 640


def main(workflows: str, docs: str) -> None:
    folder = pathlib.Path(workflows)
    for path in sorted(folder.glob("*.png")):
        image = Image.open(path).convert("RGB")
        image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS).save(
            path.with_suffix(".jpg"), quality=85
        )
        path.unlink()
    for path in sorted((folder / "nodes").glob("*.png")):
        Image.open(path).convert("RGB").save(pathlib.Path(docs, path.name).with_suffix(".jpg"), quality=85)
        path.unlink()
    (folder / "nodes").rmdir()


if __name__ == "__main__":
    main(*sys.argv[1:])
