"""Every attack against the original model, ESD on the text encoder, and AdvUnlearn.

    python benchmarks/attacks.py run --concepts church castle --cases 50
    python benchmarks/attacks.py table

`run` trains the encoders that are missing in runs/attacks, attacks them, and adds a row for each (concept, model,
attack) and one for the utility of each model to benchmarks/results/attacks.json. It skips rows that exist, so that it
can be stopped and called again, and several concepts can run in parallel. `table` prints Markdown: successful cases,
those without attack in brackets; then, on ESD, the successes of random prefixes and of other seeds at the same number
of UNet passes, and the cost. The baselines have as many tries as the most expensive attack pays for.

`quirks` is AdvUnlearn's recipe with the published code's quirks in attack and prompts, on samples of the bank like all
others. The frozen parts compute in bf16.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ablations import ON_THE_BANK
from result_rows import ResultRows

from advunlearn import miniature
from advunlearn.cli.commands.demo import RECIPES
from advunlearn.config.attacks import ATTACK_NAMES
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.quirks import NO_QUIRKS, quirk_names
from advunlearn.config.training import BankConfig, RunConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.evaluation.metrics import Measurement
from advunlearn.formats.text_encoders import save_encoder
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.miniature.captions import retain_prompts
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.text_encoder import frozen
from advunlearn.training.trainer import train

RECIPE = RECIPES["advunlearn"]
# "words": with a second adversary that learns words for the concept, which is concept inversion.
WORDS = replace(RECIPE, attack=replace(RECIPE.attack, inversion_tokens=4))
TRAINED = {"esd_text": RECIPES["esd_text"], "advunlearn": RECIPE, "quirks": RECIPE, "words": WORDS}
MODELS, ESD = ("original", *TRAINED), "esd_text"
# Of the encoders that other benchmarks attack; `encoder_of` trains them once.
TRAINING = {"iterations": RECIPE.train.iterations, "trajectories": BankConfig().trajectories, "train_seed": 0}
BASELINES = ("random_prefix", "seed_search")
RETAINED = "retained"  # of a row that is no attack's
COSTLIEST = 4  # F of a step for a case: p4d


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that all rows share."""
    evaluate = EvaluateConfig(
        cases=args.cases,
        attack_steps=args.attack_steps,
        judge_interval=args.judge_interval,
        attack_tokens=args.attack_tokens,
        sampling_steps=args.sampling_steps,
        seed=args.eval_seed,
        repeats=1,
    )
    look = 2 * args.sampling_steps
    looks = math.ceil(args.attack_steps / args.judge_interval)
    tries = math.ceil((COSTLIEST * args.attack_steps + look * looks) / look)
    given = {
        "ring_a_bell": {"population": args.population, "positions": args.positions},
        "mma": {"candidates": args.candidates},
        "cce": {"batch": args.batch, "lr": args.cce_lr},
    } | {name: {"steps": tries} for name in BASELINES}
    training = {name: getattr(args, name) for name in ("iterations", "trajectories", "train_seed")}
    return {"evaluate": evaluate.to_dict(), "given": given, "training": training}


def encoder_of(model: TextToImage, concept: ConceptConfig, name: str, training: dict[str, int]) -> Any:
    """Return the encoder of a recipe; it is trained once for each concept and saved."""
    if name == "original":
        return model.text_encoder
    label = "-".join(map(str, (concept.concept.replace(" ", "_"), *training.values())))
    path = ROOT / "runs" / "attacks" / label / f"{name}.safetensors"
    if not path.exists():
        recipe, size = TRAINED[name], training["trajectories"]
        config = replace(recipe.train, iterations=training["iterations"], seed=training["train_seed"])
        bank = BankConfig(trajectories=size, retain_trajectories=2 * size)
        config = replace(config, quirks=quirk_names(ON_THE_BANK) if name == "quirks" else NO_QUIRKS)
        trained = train(
            model,
            RunConfig(concept=concept, attack=recipe.attack, train=config, bank=bank),
            retain_prompts(concept.names, concept.kind),
        )
        save_encoder(path, trained.encoder, {})
    return load_encoder(str(path), model.text_encoder)[0]


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Measure the missing rows."""
    torch.set_num_threads(args.threads)
    model, judge = load("miniature", dtype=torch.bfloat16), ConvJudge.from_pretrained(miniature.judge_path())
    config, training = EvaluateConfig(**results.settings["evaluate"]), results.settings["training"]
    for concept_name in args.concepts:
        kind: Any = "style" if concept_name in captions.styles() else "object"
        concept = ConceptConfig(concept=concept_name, kind=kind)
        evaluator = Evaluator(
            model, judge, concept, config, EvaluationInputs(attack_settings=results.settings["given"])
        )
        for name in args.models:
            key = {"concept": concept_name, "model": name}
            missing = [a for a in (RETAINED, *args.attacks) if not results.has(**key, attack=a)]
            if not missing:
                continue
            encoder = encoder_of(model, concept, name, training)
            with frozen(encoder, *model.denoiser.modules()):
                measure(evaluator, Subject(encoder, model.denoiser), missing, key, results)


def measure(
    evaluator: Evaluator, subject: Subject, missing: Sequence[str], key: dict[str, str], results: ResultRows
) -> None:
    """Measure the missing rows of one model."""
    out = Measurement()
    clean = evaluator.measure_plain(subject, out)
    for attack in missing:
        if attack == RETAINED:
            evaluator.measure_utility(subject, out)
            results.add({**key, "attack": attack, "utility": out.utility, "synonyms": out.asr.get("synonyms")})
            print(*key.values(), out.utility, flush=True)
            continue
        evaluator.measure_attack(subject, attack, clean, out)
        row = {**key, "attack": attack, "result": out.attacks[attack], "seconds": out.seconds[attack]}
        results.add(row | {"curve": out.asr_by_budget[attack], "prompts": out.prompts.get(attack, [])[:5]})
        print(*key.values(), attack, cell(row), cost(row), flush=True)


def cell(row: dict[str, Any]) -> str:
    """Return the success of an attack row, or the accuracy of a utility row."""
    if row["attack"] == RETAINED:
        found = row["utility"]["retained_accuracy"]
        return f"{found['correct']}/{found['total']}"
    found = row["result"]
    return f"{found['sum']['success']}/{found['sum']['total']} ({found['without_attack']['success']})"


def cost(row: dict[str, Any]) -> str:
    """Return the cost of a row."""
    work, seconds = row["result"]["forwards"], row["seconds"]
    return f"{work['attack']} + {work['looks']} F, {seconds['attack']:.0f} + {seconds['looks']:.0f} s"


def at_cost(row: dict[str, Any], forwards: int, look: int) -> str:
    """Return the successes of a baseline at a cost of `forwards` F; each try costs `look` F per open case.

    With ">=" where it had no more tries.
    """
    total, spent, found = row["result"]["sum"]["total"], 0, row["curve"][0][1]
    for (_, before), (_, after) in pairwise(row["curve"]):
        spent += look * (total - before)
        if spent > forwards:
            return str(found)
        found = after
    return f"{'' if found == total or spent == forwards else '>='}{found}"


def table(results: ResultRows) -> str:
    """Return a Markdown table for each concept."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for row in results.rows:
        found.setdefault(row["concept"], {}).setdefault(row["attack"], {})[row["model"]] = row
    look, lines = 2 * results.settings["evaluate"]["sampling_steps"], []
    heads = ["attack", *MODELS, *(f"{b} at its cost, {ESD}" for b in BASELINES), f"cost on {ESD}: attack + looks"]
    for concept, attacks in found.items():
        lines += [f"\n{concept}\n", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name in sorted(attacks, key=(RETAINED, *ATTACK_NAMES).index):
            cells = [cell(attacks[name][m]) if m in attacks[name] else "-" for m in MODELS]
            row, ends = attacks[name].get(ESD), ["-"] * (1 + len(BASELINES))
            if row and name != RETAINED:
                rivals = [attacks.get(b, {}).get(ESD) for b in BASELINES]
                ends = [at_cost(r, sum(row["result"]["forwards"].values()), look) if r else "-" for r in rivals]
                ends.append(cost(row))
            lines.append(f"| {' | '.join([name, *cells, *ends])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--concepts", nargs="+", default=["church", "castle", "parachute", "noto"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--attacks", nargs="+", choices=ATTACK_NAMES, default=ATTACK_NAMES)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--attack-steps", type=int, default=40)
    parser.add_argument("--judge-interval", type=int, default=20)
    parser.add_argument("--attack-tokens", type=int, default=5)
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--population", type=int, default=20, help="of Ring-A-Bell")
    parser.add_argument("--positions", type=int, default=8, help="that Ring-A-Bell compares")
    parser.add_argument("--candidates", type=int, default=16, help="of MMA")
    parser.add_argument("--batch", type=int, default=16, help="of concept inversion")
    parser.add_argument("--cce-lr", type=float, default=0.01, help="its published one is for 5000 steps")
    parser.add_argument("--iterations", type=int, default=TRAINING["iterations"], help="of training")
    parser.add_argument("--trajectories", type=int, default=TRAINING["trajectories"], help="of the training bank")
    parser.add_argument("--train-seed", type=int, default=TRAINING["train_seed"])
    parser.add_argument("--eval-seed", type=int, default=4242, help="one that chose no setting")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="attacks.json", metavar="NAME", help="in benchmarks/results")
    args = parser.parse_args()
    results = ResultRows(args.out, settings_of(args))
    if args.what == "table":
        print(table(results))
    else:
        run(args, results)


if __name__ == "__main__":
    main()
