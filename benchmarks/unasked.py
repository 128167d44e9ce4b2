"""How often the original model draws each style where none is asked for: what erasing a style cannot go below.

    python benchmarks/unasked.py [--repeats 4]

Every object of the miniature is drawn by a caption without a style, and by one in each style. A style whose anchor is
the caption without it has as many pictures left as the first column says, however well it is erased. Prints Markdown.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections import Counter

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from advunlearn import miniature
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.models.loading import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4, help="pictures of each caption")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    evaluator = Evaluator(model, judge, ConceptConfig(), EvaluateConfig(cases=1, seed=args.seed))
    generator = torch.Generator().manual_seed(args.seed)

    def drawn(style: str) -> Counter[str]:
        prompts = [captions.caption(name, style=style) for name in captions.objects()] * args.repeats
        noise = torch.randn(len(prompts), *model.denoiser.latent_shape, generator=generator)
        images = evaluator.drawn(evaluator.original, prompts, noise)
        return Counter(label for shown in judge.look(images, "").labels for label in shown if label in judge.styles)

    unasked, total = drawn(""), len(captions.objects()) * args.repeats
    print("| style | unasked | asked for |\n|---|---|---|")
    for style in judge.styles:
        print(f"| {style} | {unasked[style]}/{total} | {drawn(style)[style]}/{total} |")


if __name__ == "__main__":
    main()
