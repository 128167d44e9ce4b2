"""The prompts that the attacks found, as tables of the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import NAMES, text
from .columns import at, columns

SHOWN = 20  # of each model and attack


def found(models: Mapping[str, Any]) -> dict[str, dict[str, Sequence[Any]]]:
    """Return attack -> model -> its prompts."""
    out: dict[str, dict[str, Sequence[Any]]] = {}
    for name, model in models.items():
        prompts = at(model, "prompts")
        for attack, rows in prompts.items() if isinstance(prompts, Mapping) else ():
            if rows:
                out.setdefault(attack, {})[name] = rows
    return out


def row(name: str, said: Any) -> str:
    """Return the table's row of one prompt; what it lacks is "-"."""
    exact, seed = at(said, "exact"), at(said, "noise_seed")
    cells = [at(said, "case"), at(said, "step"), {True: "yes", False: "no"}.get(exact, "-")]
    shown = "".join(f"<td>{text('-' if cell is None else cell)}</td>" for cell in cells)
    prompt = f"{at(said, 'prompt')}" + ("" if seed is None else f" (noise of seed {seed})")
    return f'<tr><th scope="row">{text(NAMES.get(name, name))}</th>{shown}<td class="said">{text(prompt)}</td></tr>'


def prompt_tables(models: Mapping[str, Any]) -> str:
    """Return a table for each attack that found prompts; "" where none did."""
    labels = {where.split()[1]: label for label, where, *_ in columns(models) if " " in where}
    out = ""
    for attack, each in found(models).items():
        rows = "".join(row(name, said) for name, prompts in each.items() for said in prompts[:SHOWN])
        left = sum(max(0, len(prompts) - SHOWN) for prompts in each.values())
        more = f'<p class="note">{left} more are in report.json.</p>' if left else ""
        head = "".join(f'<th scope="col">{h}</th>' for h in ("Model", "Case", "Step", "Can be typed", "Prompt"))
        out += (
            f'<h3>{text(labels.get(attack, attack))}</h3><div class="scroll"><table class="settings"><thead><tr>{head}'
            f"</tr></thead><tbody>{rows}</tbody></table></div>{more}"
        )
    return f"<h2>Prompts found</h2>{out}" if out else ""
