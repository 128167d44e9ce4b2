"""UnlearnDiffAtk's settings: success and own loss at equal steps, with the published schedule as yardstick.

    python benchmarks/search_settings.py --concepts castle church parachute --cases 32 --steps 100

Attacks ESD on the text encoder, applied at a strength between 0 (the original encoder) and 1, where more cases can be
won than at full strength. Prints a row for each way: cases that the plain prompt leaves open, those whose image shows
the concept after the last step, F of the search, and results whose own loss is worse than the plain prompt's.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from dataclasses import replace
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from attacks import RECIPE, encoder_of
from bypasses import interpolate

from advunlearn import miniature
from advunlearn.attacks.registry import make_attack
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.training import BankConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.convnet import ConvJudge
from advunlearn.losses import denoising_loss
from advunlearn.models.counting import count_forwards
from advunlearn.models.loading import load
from advunlearn.models.text_encoder import frozen

NAME = "unlearndiffatk"
RANDOM: dict[str, Any] = {"timesteps": 0, "start": "random", "weight_decay": 0.0}
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "published": {"lr": 0.01, "keep": "last", "vocabulary": "all"},
    "published, typed": {"lr": 0.01, "keep": "last"},
    **{f"random, {lr}": {"lr": lr, **RANDOM} for lr in (0.005, 0.01, 0.02, 0.05)},
    **{f"random, {lr}, last": {"lr": lr, **RANDOM, "keep": "last"} for lr in (0.01, 0.05)},
}


def measure(evaluator: Evaluator, subject: Subject, way: dict[str, Any]) -> dict[str, int]:
    """Attack the open cases in one way."""
    evaluator.inputs = EvaluationInputs(attack_settings={NAME: way})
    clean = evaluator.generate_from_prompts(subject, evaluator.cases.plain, evaluator.noise)
    cases = (~evaluator.detect_concept(clean)).nonzero().flatten()
    counted = count_forwards(subject.denoiser)
    context = replace(evaluator.make_context(subject, cases), denoiser=counted)
    attack: Any = make_attack(NAME, context, evaluator.make_attack_settings(NAME), evaluator.config.seed)
    attack.run()
    images = evaluator.generate_images(subject, attack.result().conditioning, evaluator.noise[cases])
    return {
        "open": len(cases),
        "found": int(evaluator.detect_concept(images).sum()),
        "F": counted.forwards,
        "worse": int((attack.objective() > compute_plain_losses(attack)).sum()),
    }


@torch.no_grad()
def compute_plain_losses(attack: Any) -> torch.Tensor:
    """Return the losses of the plain prompts (N,) on the draws on which the attack compares its points."""
    context = attack.context
    conditioning = context.encode(context.prompts)
    losses = torch.zeros(len(conditioning))
    for x_t, t, noise in attack.fixed_draws:
        losses += denoising_loss(context.denoiser.noise_pred(x_t, t, conditioning), noise).cpu()
    return losses / len(attack.fixed_draws)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=["castle", "church", "parachute"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--strength", type=float, default=0.7)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--eval-seed", type=int, default=4242)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    training = {"iterations": RECIPE.train.iterations, "trajectories": BankConfig().trajectories, "train_seed": 0}
    config = EvaluateConfig(
        cases=args.cases,
        attack_steps=args.steps,
        judge_interval=args.steps,
        sampling_steps=10,
        seed=args.eval_seed,
        repeats=0,
    )
    print("| concept | way | open | found | F | worse than the plain prompt |\n|---|---|---|---|---|---|")
    for name in args.concepts:
        concept = ConceptConfig(concept=name)
        erased = encoder_of(model, concept, "esd_text", training)
        subject = Subject(interpolate(model.text_encoder, erased, args.strength), model.denoiser)
        evaluator = Evaluator(model, judge, concept, config)
        for way in args.ways:
            with frozen(subject.encoder, *subject.denoiser.modules()):
                row = measure(evaluator, subject, WAYS[way])
            print(f"| {name} | {way} | {' | '.join(map(str, row.values()))} |", flush=True)


if __name__ == "__main__":
    main()
