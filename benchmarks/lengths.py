"""One recipe and one concept at several lengths of training, by which the settings of the recipes were chosen.

    python benchmarks/lengths.py --concept bell [--recipe esd_text --lr 2e-4] [--at 60 80 100 140 200]

Measures plain prompts, synonyms and both attacks of 40 steps, 32 cases. Seeds and concepts must differ from those of
the tables by which the settings are judged. The frozen parts compute in bf16. Prints Markdown.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cost import Way, trained
from result_rows import ATTACKS, WHOLE_VOCABULARY

from advunlearn import miniature
from advunlearn.cli.commands.demo import RECIPES
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.models.loading import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="bell")
    parser.add_argument("--recipe", choices=("esd_text", "advunlearn", "advunlearn_no_retain"), default="advunlearn")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--at", nargs="+", type=int, default=[60, 80, 100, 140, 200])
    parser.add_argument("--seed", type=int, default=100, help="of training")
    parser.add_argument("--eval-seed", type=int, default=2000)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    concept = ConceptConfig(concept=args.concept, kind="style" if args.concept in captions.styles() else "object")
    config = EvaluateConfig(cases=args.cases, attack_steps=40, judge_interval=40, repeats=1, seed=args.eval_seed)
    evaluator = Evaluator(model, judge, concept, config, EvaluationInputs(attack_settings=WHOLE_VOCABULARY))
    changes: dict[str, Any] = {} if args.lr is None else {"lr": args.lr}
    lr = changes.get("lr", RECIPES[args.recipe].train.lr)
    print(f"| concept | recipe | rate | iterations | {' | '.join(ATTACKS.values())} | retained | its style |")
    print("|---" * (6 + len(ATTACKS)) + "|")
    way = Way(args.recipe, train=changes, lengths=tuple(args.at))
    for length, (encoder, _) in trained(model, concept, way, args.seed).items():
        found = evaluator.measure(Subject(encoder, model.denoiser))
        cells = [str(found.asr[attack]["success"]) for attack in ATTACKS]
        utility = [found.utility[name] for name in ("retained_accuracy", "style_accuracy")]
        cells += [f"{count['correct']}/{count['total']}" for count in utility]
        print(f"| {args.concept} | {args.recipe} | {lr:g} | {length} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
