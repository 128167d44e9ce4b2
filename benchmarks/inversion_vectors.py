"""Concept inversion with one embedding and with several.

    python benchmarks/inversion_vectors.py run castle ENCODER [ENCODER ...] --vectors 1 2 4
    python benchmarks/inversion_vectors.py table

CCE (arXiv 2308.01508) learns a word of several vectors for the concept, with 16 images per step at a learning rate of
0.01 (the published 0.08 is for 5000 steps). `run` adds a row to benchmarks/results/inversion-vectors.json for each
(encoder, vectors), and skips rows that exist. `table` prints Markdown: successful cases after each number of
steps, where a successful case counts at all later steps too; passes of the search, which all cases share.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from given_encoders import load_encoders, parse_arguments
from inversion import INVERSION, at
from result_rows import ResultRows

from advunlearn import miniature
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.evaluation.metrics import Measurement
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.loading import load
from advunlearn.models.text_encoder import frozen


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Measure the missing rows."""
    torch.set_num_threads(1)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    config = EvaluateConfig(**results.settings["evaluate"])
    evaluator = Evaluator(model, judge, ConceptConfig(concept=args.concept), config)
    for key, encoder in load_encoders(args.encoders, model, args.concept):
        subject = Subject(encoder, model.denoiser)
        with frozen(encoder, *model.denoiser.modules()):
            clean = evaluator.generate_from_prompts(subject, evaluator.cases.plain, evaluator.noise)
            for vectors in args.vectors:
                if not results.has(**key, vectors=vectors):
                    results.add({**key, "vectors": vectors, **measure(evaluator, subject, clean, vectors)})
                    print(results.rows[-1], flush=True)


def measure(evaluator: Evaluator, subject: Subject, clean: torch.Tensor, vectors: int) -> dict[str, Any]:
    """Attack with a word of several vectors; `clean` (N, 3, H, W) are the images of the plain prompts."""
    out = Measurement()
    evaluator.inputs = EvaluationInputs(attack_settings={"cce": {**INVERSION, "tokens": vectors}})
    evaluator.measure_attack(subject, "cce", clean, out)
    norms = out.embeddings["cce"].norm(dim=-1)
    return {
        "curve": out.asr_by_budget["cce"],
        "total": out.attacks["cce"]["sum"]["total"],
        "F": out.attacks["cce"]["forwards"]["attack"],
        "norms": [round(norm, 3) for norm in norms.tolist()],
        "seconds": out.seconds["cce"],
    }


def table(results: ResultRows) -> str:
    """Return Markdown: a row for each concept, encoder and number of vectors."""
    evaluate = results.settings["evaluate"]
    looks = range(0, evaluate["attack_steps"] + 1, evaluate["judge_interval"])
    heads = ["concept", "encoder", "vectors", "no attack", *(f"{look} steps" for look in looks[1:]), "F"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in sorted(results.rows, key=lambda row: (row["concept"], row["mode"], row["vectors"])):
        cells = [f"{at(row['curve'], look)}/{row['total']}" for look in looks]
        start = [row["concept"], row["mode"], str(row["vectors"])]
        lines.append(f"| {' | '.join([*start, *cells, str(row['F'])])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--attack-steps", type=int, default=80)
    parser.add_argument("--judge-interval", type=int, default=20)
    parser.add_argument("--eval-seed", type=int, default=4242)
    args = parse_arguments(parser)
    evaluate = EvaluateConfig(
        cases=args.cases,
        attack_steps=args.attack_steps,
        judge_interval=args.judge_interval,
        sampling_steps=10,
        seed=args.eval_seed,
        repeats=0,
    )
    settings = {"evaluate": evaluate.to_dict(), "inversion": INVERSION}
    results = ResultRows("inversion-vectors.json", settings)
    if args.what == "run":
        run(args, results)
    else:
        print(table(results))


if __name__ == "__main__":
    main()
