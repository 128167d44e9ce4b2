"""Turn the screenshots that make.mjs took into the shipped images, and remove the screenshots.

    python tools/workflows/thumbnails.py workflows web/docs docs

NAME.png becomes workflows/NAME.jpg, 640 pixels wide, and nodes/NODE.png becomes web/docs/NODE.jpg. Those in readme/ go
into docs; the image of the training node is cut in two halves, because it is too tall for a page.
"""

from __future__ import annotations

import pathlib
import sys

from PIL import Image

WIDTH = 640


def cut_in_two(image: Image.Image) -> Image.Image:
    """Put the lower half of an image to the right of its upper half."""
    half = -(-image.height // 2)
    both = Image.new("RGB", (2 * image.width, half))
    both.paste(image.crop((0, 0, image.width, half)))
    both.paste(image.crop((0, half, image.width, image.height)), (image.width, 0))
    return both


def main(workflows: str, docs: str, readme: str) -> None:
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
    for path in sorted((folder / "readme").glob("*.png")):
        image = Image.open(path).convert("RGB")
        (cut_in_two(image) if path.stem == "train-node" else image).save(pathlib.Path(readme, path.name), optimize=True)
        path.unlink()
    for made in ("nodes", "readme"):
        (folder / made).rmdir()


if __name__ == "__main__":
    main(*sys.argv[1:])
