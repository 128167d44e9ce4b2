"""Measure models part by part: a row for the plain prompts with utility and synonyms, and one for each attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from result_rows import ATTACKS, ResultRows, summed

from advunlearn import miniature
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.evaluation.metrics import Measurement
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.loading import TextToImage
from advunlearn.models.text_encoder import frozen

Row = dict[str, Any]
# The test seed chose no setting. Concept inversion's published learning rate is for 5000 steps.
SETTINGS: dict[str, Row] = {
    "evaluate": EvaluateConfig(cases=30, attack_steps=40, judge_interval=40, repeats=1, seed=4242).to_dict(),
    "given": {"cce": {"steps": 100, "lr": 0.01}},
}
PLAIN = "plain"  # the part that is no attack
UTILITY = {"retained_accuracy": "retained", "neighbour_accuracy": "neighbours", "style_accuracy": "style"}
TYPED = ("synonyms", "unlearndiffatk")  # what can be typed; the second counts plain prompts too


def make_evaluator(model: TextToImage, concept: ConceptConfig) -> Evaluator:
    """Return the evaluator of a model of the miniature's kind at the shared budget."""
    judge = ConvJudge.from_pretrained(miniature.judge_path())
    inputs = EvaluationInputs(attack_settings=SETTINGS["given"])
    return Evaluator(model, judge, concept, EvaluateConfig(**SETTINGS["evaluate"]), inputs)


def find_missing(results: ResultRows, key: Row, attacks: Sequence[str]) -> list[str]:
    """Return the parts of a model that were not measured yet."""
    return [part for part in (PLAIN, *attacks) if not results.has(**key, part=part)]


def measure(evaluator: Evaluator, subject: Subject, results: ResultRows, key: Row, parts: Sequence[str]) -> None:
    """Measure some parts of a model, and write and print each row."""
    out = Measurement()
    with frozen(subject.encoder, *subject.denoiser.modules()):
        clean = evaluator.measure_plain(subject, out)
        for part in parts:
            if part == PLAIN:
                evaluator.measure_utility(subject, out)
                row = {"asr": {name: out.asr[name] for name in ("clean", "synonyms")}, "utility": out.utility}
            else:
                evaluator.measure_attack(subject, part, clean, out)
                row = {"asr": {part: out.asr[part]}, "attack": out.attacks[part], "prompts": out.prompts.get(part, [])}
            results.add({**key, "part": part, **row})
            print(*key.values(), part, {name: count["success"] for name, count in row["asr"].items()}, flush=True)


def merge_parts(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[Any, ...], Row]:
    """Return the success counts and the utility of each model, by the values of its key's `names`."""
    models: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        model = models.setdefault(tuple(row[name] for name in names), {"asr": {}, "utility": {}})
        model["asr"] |= row["asr"]
        model["utility"] |= row.get("utility", {})
    return models


def find_worst(asr: dict[str, dict[str, int]], attacks: Sequence[str]) -> dict[str, int]:
    """Return the count of the most successful of some attacks."""
    return max((asr[attack] for attack in attacks), key=lambda count: count["success"])


def format_cells(models: Sequence[Row], attacks: Sequence[str], utility: Sequence[str] = tuple(UTILITY)) -> list[str]:
    """Return the cells of a table's row: each attack, the worst of typed text, utility; summed over seeds."""
    cells = [summed([model["asr"][attack] for model in models], "success") for attack in attacks]
    cells.insert(list(attacks).index(TYPED[-1]) + 1, summed([find_worst(m["asr"], TYPED) for m in models], "success"))
    return cells + [summed([model["utility"][name] for model in models], "correct") for name in utility]


def format_titles(attacks: Sequence[str], utility: Sequence[str] = tuple(UTILITY)) -> list[str]:
    """Return the titles of `format_cells`."""
    titles = [ATTACKS.get(attack, attack) for attack in attacks]
    titles.insert(list(attacks).index(TYPED[-1]) + 1, "**typed text**")
    return titles + [UTILITY[name] for name in utility]
