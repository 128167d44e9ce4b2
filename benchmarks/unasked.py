"""How often each style appears in images whose prompt names none: a lower bound for the erasure of a style.

    python benchmarks/unasked.py [--repeats 4]

The original model generates every object of the miniature with a caption that names no style, and with one for each
style. If the anchor of an erased style is the caption without style, the rate in the first column remains, however well
the style is erased. Prints Markdown.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections import Counter
from dataclasses import replace

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
from advunlearn.models.unet_files import load_unet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4, help="pictures of each caption")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--unet", help="a further UNet, as a folder, in place of the miniature's own")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    if args.unet:
        model = replace(model, denoiser=load_unet(args.unet, model.denoiser)[0])
    evaluator = Evaluator(model, judge, ConceptConfig(), EvaluateConfig(cases=1, seed=args.seed))
    generator = torch.Generator().manual_seed(args.seed)

    def drawn(style: str) -> Counter[str]:
        prompts = [captions.caption(name, style=style) for name in captions.objects()] * args.repeats
        noise = torch.randn(len(prompts), *model.denoiser.latent_shape, generator=generator)
        images = evaluator.generate_from_prompts(evaluator.original, prompts, noise)
        return Counter(label for shown in judge.look(images, "").labels for label in shown if label in judge.styles)

    unasked, total = drawn(""), len(captions.objects()) * args.repeats
    print("| style | unasked | asked for |\n|---|---|---|")
    for style in judge.styles:
        print(f"| {style} | {unasked[style]}/{total} | {drawn(style)[style]}/{total} |")


if __name__ == "__main__":
    main()
