"""What brings a concept back? Every attack against the original model, ESD on the text encoder and AdvUnlearn.

    python benchmarks/attacks.py run --concepts church castle --cases 50
    python benchmarks/attacks.py table

`run` trains what is missing into runs/attacks, attacks it, and adds a row for each (concept, model, attack) to
benchmarks/results/attacks.json; rows that are there at the same settings are passed over, so it can be stopped and
called again. `table` prints Markdown: cases that came back, those without attack in brackets, then cost.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from dataclasses import replace
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from advunlearn import miniature
from advunlearn.attack_config import ATTACK_NAMES
from advunlearn.config import BankConfig, ConceptConfig, EvaluateConfig
from advunlearn.evaluation.evaluate import Evaluator, Subject
from advunlearn.evaluation.measurement import Measurement
from advunlearn.files import write_atomic
from advunlearn.formats import load_encoder, save_encoder
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.models import TextToImage, load
from advunlearn.recipes import RECIPES, train_all
from advunlearn.text_encoder import frozen

RESULTS = ROOT / "benchmarks" / "results" / "attacks.json"
# With a second adversary that learns words for the concept.
WORDS = replace(RECIPES["advunlearn"], attack=replace(RECIPES["advunlearn"].attack, words=4))
TRAINED = {name: RECIPES[name] for name in ("esd_text", "advunlearn")} | {"words": WORDS}
MODELS = ("original", *TRAINED)


def rows() -> list[dict[str, Any]]:
    """Return the rows measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def key(row: dict[str, Any]) -> str:
    """Return what a row is of."""
    return json.dumps([row[k] for k in ("concept", "model", "attack", "settings", "training")], sort_keys=True)


def encoder_of(model: TextToImage, concept: ConceptConfig, name: str, args: argparse.Namespace) -> Any:
    """Return the encoder of a recipe, trained once for each concept and kept."""
    if name == "original":
        return model.text_encoder
    folder = (
        ROOT
        / "runs"
        / "attacks"
        / f"{concept.concept.replace(' ', '_')}-{args.iterations}-{args.trajectories}-{args.train_seed}"
    )
    path = folder / f"{name}.safetensors"
    if not path.exists():
        recipe = TRAINED[name]
        recipe = replace(recipe, train=replace(recipe.train, iterations=args.iterations))
        bank = BankConfig(trajectories=args.trajectories, retain_trajectories=2 * args.trajectories)
        trained = train_all(model, concept, {name: recipe}, bank, args.train_seed)
        save_encoder(path, trained[name][0].encoder, {})
    return load_encoder(str(path), model.text_encoder)[0]


def run(args: argparse.Namespace) -> None:
    """Measure every row that is missing."""
    model, judge = load("miniature"), ConvJudge.from_pretrained(miniature.judge_path())
    config = EvaluateConfig(
        cases=args.cases, attack_steps=args.attack_steps, attack_every=args.attack_every,
        attack_tokens=args.attack_tokens, sampling_steps=args.sampling_steps, restarts=args.restarts,
        seed=args.eval_seed, repeats=0,
    )  # fmt: skip
    given = {
        "ring_a_bell": {"population": args.population, "positions": args.positions},
        "mma": {"candidates": args.candidates}, "cce": {"batch": args.batch},
    }  # fmt: skip
    training = {name: getattr(args, name) for name in ("iterations", "trajectories", "train_seed")}
    for concept_name in args.concepts:
        kind = "style" if concept_name in captions.styles() else "object"
        concept = ConceptConfig(concept=concept_name, kind=kind)
        evaluator = Evaluator(model, judge, concept, config, given=given)
        for name in args.models:
            wanted = [
                {"concept": concept_name, "model": name, "attack": attack, "training": training,
                 "settings": config.to_dict() | {"given": given.get(attack, {})}}
                for attack in args.attacks
            ]  # fmt: skip
            done = {key(row) for row in rows()}
            missing = [about for about in wanted if key(about) not in done]
            if not missing:
                continue
            encoder, clean, out = encoder_of(model, concept, name, args), None, Measurement()
            subject = Subject(encoder, model.denoiser)
            for about in missing:
                attack = about["attack"]
                with frozen(encoder, *model.denoiser.modules()):
                    if clean is None:
                        clean = evaluator.plain(subject, out)
                    evaluator.attack(subject, attack, clean, out)
                row = about | {"result": out.attacks[attack], "seconds": out.seconds[attack]}
                row |= {"curve": out.asr_by_budget[attack], "prompts": out.prompts.get(attack, [])[:5]}
                write_atomic(RESULTS, (json.dumps([*rows(), row], indent=1) + "\n").encode())
                print(concept_name, name, attack, cell(row), cost(row), flush=True)


def cell(row: dict[str, Any]) -> str:
    """Return a row's success."""
    found = row["result"]
    return f"{found['sum']['success']}/{found['sum']['total']} ({found['without_attack']['success']})"


def cost(row: dict[str, Any]) -> str:
    """Return a row's cost."""
    work, seconds = row["result"]["forwards"], row["seconds"]
    return f"{work['attack']} + {work['looks']} F, {seconds['attack']:.0f} + {seconds['looks']:.0f} s"


def table() -> None:
    """Print the matrix as Markdown, one for each concept."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for row in rows():
        found.setdefault(row["concept"], {}).setdefault(row["attack"], {})[row["model"]] = row
    for concept, attacks in found.items():
        print(f"\n{concept}\n\n| attack | {' | '.join(MODELS)} | cost on {MODELS[1]}: attack + looks |")
        print("|---" * (len(MODELS) + 2) + "|")
        for name in sorted(attacks, key=ATTACK_NAMES.index):
            of = attacks[name]
            cells = [cell(of[m]) if m in of else "-" for m in MODELS]
            print(f"| {name} | {' | '.join(cells)} | {cost(of[MODELS[1]]) if MODELS[1] in of else '-'} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--concepts", nargs="+", default=["church", "castle", "parachute", "ink"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--attacks", nargs="+", choices=ATTACK_NAMES, default=ATTACK_NAMES)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--attack-steps", type=int, default=40)
    parser.add_argument("--attack-every", type=int, default=10)
    parser.add_argument("--attack-tokens", type=int, default=5)
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--population", type=int, default=40, help="of Ring-A-Bell")
    parser.add_argument("--positions", type=int, default=12, help="that Ring-A-Bell compares")
    parser.add_argument("--candidates", type=int, default=32, help="of MMA")
    parser.add_argument("--batch", type=int, default=16, help="of concept inversion")
    parser.add_argument("--iterations", type=int, default=200, help="of training")
    parser.add_argument("--trajectories", type=int, default=BankConfig().trajectories, help="of the training bank")
    parser.add_argument("--train-seed", type=int, default=0)
    parser.add_argument("--eval-seed", type=int, default=4242, help="one that chose no setting")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.what == "table":
        table()
    else:
        torch.set_num_threads(args.threads)
        run(args)


if __name__ == "__main__":
    main()
