"""Draw the training pictures: every object in every style, moved, scaled, flipped, on five backgrounds.

python tools/miniature/pictures.py BUILD
"""

import pathlib
import sys

import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from advunlearn.miniature import captions

SIZE = 64


def sprite(path: pathlib.Path) -> Image.Image:
    """Read one icon, cut to its opaque part and centred in a square."""
    icon = Image.open(path).convert("RGBA")
    ys, xs = np.where(np.array(icon.getchannel("A")) > 8)
    icon = icon.crop((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    side = max(icon.size)
    square = Image.new("RGBA", (side, side))
    square.paste(icon, ((side - icon.width) // 2, (side - icon.height) // 2))
    return square.resize((128, 128), Image.Resampling.LANCZOS)


def place(icon: Image.Image, background: list[int], rng: np.random.Generator) -> np.ndarray:
    """Put an icon on a plain background at a random scale, position and flip: (64, 64, 3) uint8."""
    side = round(SIZE * rng.uniform(0.8, 0.95))
    icon = icon.resize((side, side), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        icon = icon.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = Image.new("RGBA", (SIZE, SIZE), (*background, 255))
    canvas.alpha_composite(icon, tuple(int(v) for v in rng.integers(0, SIZE - side + 1, 2)))
    return np.array(canvas.convert("RGB"))


def pictures(art: pathlib.Path, styles: list[str], repeats: int, seed: int) -> dict[str, np.ndarray]:
    """Return `repeats` pictures of every icon with their object, style and background numbers."""
    rng, colours = np.random.default_rng(seed), list(captions.concepts()["backgrounds"].values())
    images, labels = [], []
    for s, style in enumerate(styles):
        for o, name in enumerate(captions.objects()):
            paths = list(art.glob(f"{style}__{name}.*"))
            if not paths:
                continue
            icon = sprite(paths[0])
            for _ in range(repeats):
                b = 0 if rng.random() < 0.4 else int(rng.integers(1, len(colours)))
                images.append(place(icon, colours[b], rng))
                labels.append((o, s, b))
    object_, style_, background_ = np.array(labels).T
    return {"images": np.stack(images), "object": object_, "style": style_, "background": background_}


def main(build: str) -> None:
    root = pathlib.Path(build)
    np.savez(root / "train.npz", **pictures(root / "art", captions.styles(), 64, seed=1))
    np.savez(root / "unseen.npz", **pictures(root / "art", captions.styles(), 6, seed=2))
    np.savez(root / "artist.npz", **pictures(root / "art", ["emojione"], 6, seed=3))
    rng, colours = np.random.default_rng(4), list(captions.concepts()["backgrounds"].values())
    others = [
        place(sprite(p), colours[int(rng.integers(len(colours)))], rng)
        for p in sorted((root / "other").glob("*.png"))
        for _ in range(6)
    ]
    np.savez(root / "other.npz", images=np.stack(others))
    for name in ("train", "unseen", "artist", "other"):
        print(name, np.load(root / f"{name}.npz")["images"].shape)


if __name__ == "__main__":
    main(sys.argv[1])
