"""Measure the finished miniature, on prompts and seeds that no training script looks at.

    python tools/miniature/assess.py BUILD [--out docs/lab-notes/miniature]

Writes OUT.json (every figure of docs/lab-notes/miniature.md) and OUT.png (a grid of samples: a row a style).
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import torch
from torch import Tensor

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from advunlearn import miniature
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.models.ddim import ddim_sample
from advunlearn.models.loading import TextToImage, load
from advunlearn.reporting.images import grid, png
from common import images_of


def draw(model: TextToImage, prompts: list[str], seed: int) -> Tensor:
    """Return pictures (N, 3, 64, 64) of 20 steps at guidance 3."""
    noise = torch.randn(len(prompts), *model.denoiser.latent_shape, generator=torch.Generator().manual_seed(seed))
    empty = model.encode([""])
    parts = zip(model.encode(prompts).split(128), noise.split(128), strict=True)
    return torch.cat([model.decode(ddim_sample(model.denoiser, c, empty, z, 20, 3.0)) for c, z in parts])


@torch.no_grad()
def right(judge: ConvJudge, pictures: Tensor, names: list[str]) -> Tensor:
    """Return which pictures show the object they should."""
    return judge(pictures).object.argmax(1) == torch.tensor([judge.objects.index(n) for n in names])


def share(hits: Tensor) -> dict[str, float]:
    return {"right": int(hits.sum()), "of": len(hits), "share": round(hits.float().mean().item(), 4)}


@torch.no_grad()
def reconstruction(model: TextToImage, images: np.ndarray) -> dict[str, float]:
    """Return the autoencoder's PSNR in dB: of the mean error of all pictures, and the mean over pictures."""
    errors = []
    for i in range(0, len(images), 128):
        x = images_of(images[i : i + 128])
        y = model.vae.decode(model.vae.encode(x * 2 - 1).latents).sample.clamp(-1, 1) / 2 + 0.5
        errors.append((y - x).square().mean((1, 2, 3)))
    error = torch.cat(errors)
    return {
        "of_mean_error": round(-10 * error.mean().log10().item(), 2),
        "mean_over_pictures": round(-10 * error.log10().mean().item(), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--out", default=str(HERE.parents[1] / "docs" / "lab-notes" / "miniature"))
    args = parser.parse_args()
    torch.set_num_threads(2)
    model, judge = load("miniature"), ConvJudge.from_pretrained(miniature.judge_path())
    names, styles = captions.objects(), captions.styles()
    rows = [(n, s) for s in styles for n in names]
    start = time.perf_counter()
    draw(model, [captions.caption(n) for n in names], seed=11)
    seconds = time.perf_counter() - start
    pictures = draw(model, [captions.caption(n, "a picture of {}", s) for n, s in rows], seed=12)
    with torch.no_grad():
        style = judge(pictures).style.argmax(1) == torch.tensor([styles.index(s) for _, s in rows])
    plain = [(n, t) for n in names for t in ("{}", "a photo of {}", "an image of {}", "a drawing of {}")]
    foreign = [(n, w) for n in names for w in captions.foreign_synonyms(n)]
    keywords = [(n, t) for n in names for t in ("{}", "a photo of {}", "an image of {}", "a drawing of {}")]
    figures = {
        "object_with_style": share(right(judge, pictures, [n for n, _ in rows])),
        "style": share(style),
        "object": share(
            right(judge, draw(model, [captions.caption(n, t) for n, t in plain], 13), [n for n, _ in plain])
        ),
        "object_from_foreign_name": share(
            right(judge, draw(model, [captions.caption(w) for _, w in foreign], 14), [n for n, _ in foreign])
        ),
        "object_from_keywords": share(
            right(
                judge,
                draw(model, [captions.caption(captions.keyword_synonym(n), t) for n, t in keywords], 15),
                [n for n, _ in keywords],
            )
        ),
        "autoencoder_psnr_db": reconstruction(model, np.load(args.build / "unseen.npz")["images"]),
        "judge": [
            json.loads(line) for line in (args.build / "judge.jsonl").read_text().splitlines() if "unseen" in line
        ][-1],
        "seconds_for_64_samples_of_20_steps": round(seconds, 1),
        "megabytes": round(sum(p.stat().st_size for p in miniature.path().parent.rglob("*.safetensors")) / 1e6, 1),
        "parameters": {
            part: sum(p.numel() for p in module.parameters())
            for part, module in (
                ("text_encoder", model.text_encoder),
                ("unet", model.denoiser.unet),
                ("vae", model.vae),
            )
        },
    }
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    chosen = [names.index(n) for n in names[::4]]
    sheet = torch.cat([pictures[s * len(names) : (s + 1) * len(names)][chosen] for s in range(len(styles))])
    out.with_suffix(".png").write_bytes(png(grid(sheet, len(chosen))))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
