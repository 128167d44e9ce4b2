"""The adversarial prompts that the attacks found, as tables of the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .charts import MODEL_NAMES

PROMPTS_SHOWN = 20  # per model and attack


class FoundPrompt(NamedTuple):
    """A row of a table: an adversarial prompt; what the report lacks is "-"."""

    model: str
    case: str
    step: str
    can_be_typed: str
    prompt: str


class FoundPrompts(NamedTuple):
    """The prompts that one attack found."""

    attack: str
    rows: tuple[FoundPrompt, ...]
    hidden: int  # number of prompts beyond `PROMPTS_SHOWN`


def group_prompts(models: Mapping[str, object]) -> dict[str, dict[str, Sequence[Mapping[str, object]]]]:
    """Return the prompts in a report, by attack and model."""
    groups: dict[str, dict[str, Sequence[Mapping[str, object]]]] = {}
    for name, model in models.items():
        prompts = model.get("prompts") if isinstance(model, Mapping) else None
        for attack, rows in prompts.items() if isinstance(prompts, Mapping) else ():
            if rows:
                groups.setdefault(attack, {})[name] = rows
    return groups


def make_row(model: str, found: Mapping[str, object]) -> FoundPrompt:
    """Return the table row of a prompt."""
    seed = found.get("noise_seed")
    prompt = str(found.get("prompt"))
    return FoundPrompt(
        model=MODEL_NAMES.get(model, model),
        case=str(found.get("case", "-")),
        step=str(found.get("step", "-")),
        can_be_typed=("yes" if found["exact"] else "no") if "exact" in found else "-",
        prompt=prompt if seed is None else f"{prompt} (noise of seed {seed})",
    )


def list_found_prompts(models: Mapping[str, object], labels: Mapping[str, str]) -> list[FoundPrompts]:
    """Return a table for each attack that found prompts.

    Args:
        models: the models' parts of a report.
        labels: the attacks' labels by their names.
    """
    tables = []
    for attack, by_model in group_prompts(models).items():
        rows = [make_row(name, found) for name, prompts in by_model.items() for found in prompts[:PROMPTS_SHOWN]]
        hidden = sum(max(0, len(prompts) - PROMPTS_SHOWN) for prompts in by_model.values())
        tables.append(FoundPrompts(labels.get(attack, attack), tuple(rows), hidden))
    return tables
