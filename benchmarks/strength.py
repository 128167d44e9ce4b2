"""How often plain prompts bring the concept back when a robust encoder is applied at a strength below 1.

    python benchmarks/strength.py church ENCODER [ENCODER ...] --cases 50

An encoder at strength s is original + s * (encoder - original), as in Load Robust CLIP. Prints a row for each encoder.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from search_settings import interpolate

from advunlearn import miniature
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concept")
    parser.add_argument("encoders", nargs="+", metavar="ENCODER")
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.3, 0.5, 0.7, 0.85, 1.0])
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--eval-seed", type=int, default=4242)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    config = EvaluateConfig(cases=args.cases, sampling_steps=10, seed=args.eval_seed, repeats=0)
    evaluator = Evaluator(model, judge, ConceptConfig(concept=args.concept), config)
    print(f"| encoder | {' | '.join(map(str, args.strengths))} |\n{'|---' * (1 + len(args.strengths))}|")
    for path in args.encoders:
        encoder = load_encoder(path, model.text_encoder)[0]
        cells = []
        for strength in args.strengths:
            subject = Subject(interpolate(model.text_encoder, encoder, strength), model.denoiser)
            images = evaluator.generate_from_prompts(subject, evaluator.cases.plain, evaluator.noise)
            cells.append(f"{int(evaluator.detect_concept(images).sum())}/{args.cases}")
        print(f"| {path} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
