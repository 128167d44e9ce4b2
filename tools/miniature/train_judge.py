"""Train the judge: object (or none of them), style, background.

python tools/miniature/train_judge.py BUILD [--steps 2400]
"""

import argparse
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from common import Run, cosine, images_of

OUT = HERE.parents[1] / "advunlearn" / "miniature" / "judge"


def disturb(x: Tensor, g: torch.Generator) -> Tensor:
    """Colour, noise, blur, cut-out and a small rotation: what a generated picture may get wrong without being wrong."""
    n = len(x)
    x = x * (1 + 0.15 * torch.randn(n, 3, 1, 1, generator=g)) + 0.07 * torch.randn(n, 3, 1, 1, generator=g)
    if torch.rand((), generator=g) < 0.5:
        x = x + torch.rand(n, 1, 1, 1, generator=g) * 0.12 * torch.randn(x.shape, generator=g)
    if torch.rand((), generator=g) < 0.4:
        x = F.interpolate(F.interpolate(x, scale_factor=0.5, mode="bilinear"), size=64, mode="bilinear")
    if torch.rand((), generator=g) < 0.5:
        i, j = torch.randint(0, 48, (2,), generator=g).tolist()
        x = x.clone()
        x[: n // 2, :, i : i + 16, j : j + 16] = torch.rand(n // 2, 3, 1, 1, generator=g)
    angle, scale = 0.15 * torch.randn(n, generator=g), 1 + 0.08 * torch.randn(n, generator=g)
    c, s = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = 0.05 * torch.randn(2, n, generator=g)
    affine = torch.stack([torch.stack([c, -s, shift[0]], 1), torch.stack([s, c, shift[1]], 1)], 1)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False).clamp(0, 1)


def nonsense(x: Tensor, g: torch.Generator) -> Tensor:
    """Pictures of no object, made from (12, 3, 64, 64): blends, colour clouds, shuffled tiles, plain colours."""
    order = torch.randperm(8, generator=g).repeat_interleave(8) * 8 + torch.arange(8).repeat(8)
    return torch.cat(
        [
            0.5 * x[:4] + 0.5 * x[4:8],
            F.interpolate(torch.rand(4, 3, 8, 8, generator=g), size=64, mode="bicubic").clamp(0, 1),
            x[8:10][:, :, order][..., order],
            torch.rand(2, 3, 1, 1, generator=g).expand(2, 3, 64, 64),
        ]
    )


@torch.no_grad()
def accuracy(judge: ConvJudge, file: pathlib.Path) -> dict[str, float]:
    """Return the share of right answers a head gives on one picture file."""
    data, judge = np.load(file), judge.eval()
    right: dict[str, list[Tensor]] = {"object": [], "style": [], "background": []}
    for i in range(0, len(data["images"]), 256):
        verdict = judge(images_of(data["images"][i : i + 256]))
        for head, rows in right.items():
            rows.append(getattr(verdict, head).argmax(1) == torch.from_numpy(data[head][i : i + 256]))
    judge.train()
    return {head: round(torch.cat(rows).float().mean().item(), 4) for head, rows in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=2400)
    args = parser.parse_args()
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    data, other = np.load(args.build / "train.npz"), np.load(args.build / "other.npz")["images"]
    images = data["images"]
    labels = {head: torch.from_numpy(data[head]) for head in ("object", "style", "background")}
    held, other = other[::8], np.delete(other, np.s_[::8], axis=0)
    judge = ConvJudge(captions.objects(), captions.styles(), captions.backgrounds()).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    none = len(judge.objects)
    run = Run(args.build / "judge.ckpt", judge=judge, optimizer=optimizer, generator=g)
    for step in run.steps(args.steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * cosine(step, args.steps, warmup=50)
        i = torch.randint(len(images), (68,), generator=g)
        k = torch.randint(len(other), (16,), generator=g)
        m = torch.randint(len(images), (12,), generator=g)
        x = torch.cat([images_of(images[i]), images_of(other[k]), nonsense(images_of(images[m]), g)])
        target = torch.cat([labels["object"][i], torch.full((28,), none)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            verdict = judge(disturb(x, g).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(verdict.object.float(), target, label_smoothing=0.05)
        for head in ("style", "background"):
            logits = getattr(verdict, head)[: len(i)].float()
            loss = loss + 0.5 * F.cross_entropy(logits, labels[head][i], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            run.log(
                step,
                loss=loss.item(),
                unseen=accuracy(judge, args.build / "unseen.npz"),
                artist=accuracy(judge, args.build / "artist.npz"),
            )
    judge.eval()
    with torch.no_grad():
        recall = (judge(images_of(held)).object.argmax(1) == none).float().mean().item()
    run.log(args.steps, none_recall=round(recall, 4))
    judge.save_pretrained(OUT)


if __name__ == "__main__":
    main()
