"""The report page: the contents of report.json as one HTML file without scripts, fonts or images from outside.

`report.html.j2` holds the markup; this module prepares what it shows.
"""

from __future__ import annotations

import functools
import math
import pathlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..evaluation.metrics import wilson_interval
from .charts import CHART_CSS, MODEL_NAMES, Chart, Points, draw_chart, finite_number
from .found_prompts import list_found_prompts
from .page_metrics import attack_labels, list_metrics, look_up, look_up_mapping, look_up_reason

Curves = Mapping[str, Mapping[str, Sequence[float | None]]]  # chart title -> series -> a value per iteration
WIDE = 8  # with more models than this, the results are stacked on wide screens too


class Cell(NamedTuple):
    """A value of the results table."""

    model: str
    text: str  # "n / N", a number, "not measured", or "-"
    share: float | None = None  # n / N, of counts
    details: tuple[str, ...] = ()  # the 95 % interval (Wilson) and the parts of a count, or why it was not measured


class SettingsRow(NamedTuple):
    """A row of a settings table: a value for each column."""

    name: str
    values: tuple[str, ...]
    differs: bool  # whether the columns have different values


class SettingsTable(NamedTuple):
    """Settings with a column for each model."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[SettingsRow, ...]


def format_warnings(models: Mapping[str, object]) -> list[str]:
    """Return the warnings of a report's models, each with the model's name."""
    warnings = {name: look_up(model, "warnings") for name, model in models.items()}
    return [f"WARNING: {name}, {text}" for name, each in warnings.items() if isinstance(each, list) for text in each]


def read_counts(value: object) -> tuple[int, int] | None:
    """Return (hits, total) of {"success" or "correct": n, "total": N}, or None if these are no counts."""
    total = finite_number(look_up(value, "total"))
    hits = finite_number(look_up(value, "success"))
    if math.isnan(hits):
        hits = finite_number(look_up(value, "correct"))
    return (int(hits), int(total)) if 0 <= hits <= total and total >= 1 else None


def make_cell(name: str, model: object, path: str) -> Cell:
    """Return a value of the results table; "-" if the report lacks it and does not say why."""
    if reason := look_up_reason(model, path):
        return Cell(name, "not measured", details=(reason,))
    value = look_up(model, *path.split())
    counts = read_counts(value)
    if counts is None:
        number = finite_number(value)
        digits = 3 if abs(number) < 1000 else 6
        return Cell(name, "-" if math.isnan(number) else f"{number:.{digits}g}")
    hits, total = counts
    low, high = wilson_interval(hits, total)
    details = [f"{low:.1%} to {high:.1%}"]
    for part, each in look_up_mapping(value, "by").items():
        if found := read_counts(each):
            details.append(f"{part} {found[0]} / {found[1]}")
    return Cell(name, f"{hits} / {total}", hits / total, tuple(details))


def summarize(models: Mapping[str, object]) -> list[str]:
    """Return a sentence per erased model: plain prompts, worst case, retained objects."""
    names = [name for name in models if name != "original"] or list(models)
    return [_summarize_model(name, models) for name in names] or ["No model was evaluated."]


def _summarize_model(name: str, models: Mapping[str, object]) -> str:
    attempts = {
        metric.label: counts
        for metric in list_metrics(models)
        if metric.path.startswith(("asr ", "attacks "))
        and (counts := read_counts(look_up(models, name, *metric.path.split())))
    }
    worst = max(attempts, key=lambda label: attempts[label][0] / attempts[label][1], default="")
    retained = read_counts(look_up(models, name, "utility", "retained_accuracy"))
    sentence = f"{MODEL_NAMES.get(name, name)}: {_of(attempts.get('Plain prompts'))} with the plain prompts, "
    sentence += f"{_of(attempts.get(worst))} in the worst case"
    if worst:
        sentence += f" ({worst})"
    return sentence + (f"; {_of(retained)} retained objects correct." if retained else ".")


def _of(counts: tuple[int, int] | None) -> str:
    return f"{counts[0]} of {counts[1]}" if counts else "-"


def draw_budget_charts(models: Mapping[str, object]) -> list[Chart]:
    """Draw a chart per attack: successful cases against the attack's steps."""
    attacks: dict[str, dict[str, Points]] = {}
    for name, model in models.items():
        for attack, rows in look_up_mapping(model, "asr_by_budget").items():
            pairs = [(finite_number(row[0]), finite_number(row[1])) for row in _sequence(rows) if len(row) == 2]
            attacks.setdefault(attack, {})[name] = [pair for pair in pairs if not math.isnan(pair[0])]
    labels = attack_labels(models)
    charts = []
    for attack, series in attacks.items():
        totals = [finite_number(look_up(model, "asr", attack, "total")) for model in models.values()]
        include = [0.0, *(total for total in totals if not math.isnan(total))]
        title = f"Successful cases, {labels.get(attack, attack)}"
        charts.append(draw_chart(title, series, "attack steps", include))
    return charts


def _sequence(value: object) -> Sequence[Sequence[object]]:
    return value if isinstance(value, Sequence) else ()


def draw_curves(curves: Curves) -> list[Chart]:
    """Draw a chart per title: values against iterations. NaN leaves a gap, None has no point."""
    charts = []
    for title, series in curves.items():
        points = {
            name: [(i + 1.0, finite_number(y)) for i, y in enumerate(values) if y is not None]
            for name, values in series.items()
        }
        charts.append(draw_chart(title, points, "iteration"))
    return charts


def flatten(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the leaves of nested mappings with their dotted keys: {"a": {"b": 1}} gives ("a.b", 1)."""
    if not isinstance(tree, Mapping):
        yield prefix, tree
        return
    for key, part in tree.items():
        yield from flatten(part, f"{prefix}.{key}".strip("."))


def make_settings_table(heading: str, columns: Mapping[str, object]) -> SettingsTable:
    """Return a table of nested settings with a column for each model that has any."""
    flat = {name: dict(flatten(tree)) for name, tree in columns.items() if isinstance(tree, Mapping) and tree}
    rows = []
    for key in dict.fromkeys(key for tree in flat.values() for key in tree):
        values = tuple(_plain(tree.get(key, "-")) for tree in flat.values())
        rows.append(SettingsRow(key, values, len(set(values)) > 1))
    return SettingsTable(heading, tuple(MODEL_NAMES.get(name, name) for name in flat), tuple(rows))


def _plain(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def attack_costs(model: object) -> dict[str, dict[str, object]]:
    """Return the cost of each attack: UNet forward-equivalents (F) and seconds, of the attack and of judging."""
    return {
        name: {
            "F": look_up(row, "forwards", "attack"),
            "F of judging": look_up(row, "forwards", "looks"),
            "seconds": look_up(model, "attack_seconds", name, "attack"),
            "seconds of judging": look_up(model, "attack_seconds", name, "looks"),
        }
        for name, row in look_up_mapping(model, "attacks").items()
    }


def describe_budget(report: Mapping[str, object]) -> str:
    """Return concept, budget and judge in one line."""
    budget = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in flatten(look_up_mapping(report, "budget")))
    line = f"Concept: {look_up(report, 'concept') or '-'} ({look_up(report, 'kind') or '-'}). Budget: {budget or '-'}."
    for key, value in look_up_mapping(report, "judge").items():
        if not isinstance(value, list):
            line += f" {key.replace('_', ' ').title()}: {value}."
    if cut := look_up_mapping(report, "cut_prompts"):
        line += (
            f" {len(cut)} prompts are longer than the text encoder takes and were cut: what they name behind the cut "
            "was not generated, which is no robustness."
        )
    return line


@functools.cache
def load_template() -> Environment:
    """Return the environment of the page's template; every value is escaped."""
    return Environment(
        loader=FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(report: Mapping[str, object], images: Mapping[str, bytes], curves: Curves) -> str:
    """Return the page (ASCII). What the report lacks is shown as "-".

    Args:
        report: the content of report.json.
        images: caption -> PNG.
        curves: chart title -> series -> a value per iteration; NaN leaves a gap, None has no point.
    """
    models = look_up_mapping(report, "models")
    details = [
        make_settings_table("Settings", {name: look_up(model, "config") for name, model in models.items()}),
        make_settings_table("Cost of the attacks", {name: attack_costs(model) for name, model in models.items()}),
        make_settings_table("Environment", {"Value": look_up(report, "environment")}),
    ]
    names = {name: MODEL_NAMES.get(name, name) for name in models}
    page = (
        load_template()
        .get_template("report.html.j2")
        .render(
            chart_css=Markup(CHART_CSS),
            title=f"Concept erasure report: {look_up(report, 'concept') or '-'}",
            summary=[*summarize(models), *format_warnings(models)],
            models=list(names.values()),
            stacked_results=len(names) > WIDE,
            results=[
                (metric, [make_cell(names[name], model, metric.path) for name, model in models.items()])
                for metric in list_metrics(models)
            ],
            budget=describe_budget(report),
            images={caption: b64encode(png).decode() for caption, png in images.items()},
            found_prompts=list_found_prompts(models, attack_labels(models)),
            charts=[*draw_budget_charts(models), *draw_curves(curves)],
            details=details,
            command=look_up(report, "command") or "-",
        )
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()
