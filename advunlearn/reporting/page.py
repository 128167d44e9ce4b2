"""Turn a report into one HTML page that needs nothing else: no script, no font, no picture from outside."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from ..evaluation.metrics import wilson_interval
from .charts import CSS as CHART_CSS
from .charts import NAMES, Points, line_chart, number, text
from .columns import at, columns, costs
from .found_prompts import prompt_tables

HINT = (
    "Counts are successes / cases; the bar is their share, and the tooltip of a cell gives its 95 % Wilson interval. "
    "An erasure is good when the orange bars are short at every route and the blue ones stay as long as the original "
    "model's."
)

FRAMED = "An orange frame: the judge sees the concept in this picture."

CSS = """
:root{color-scheme:light dark;--page:#fff;--bad:#d55e002b;--good:#0072b226}
@media (prefers-color-scheme:dark){:root{--page:#14171b;--bad:#ff8a4c40;--good:#56b4e93b}}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;overflow-wrap:break-word;-webkit-text-size-adjust:100%}
*{box-sizing:border-box}main{max-width:1180px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.015em;margin:0 0 12px}
h2{font-size:1.2rem;line-height:1.3;margin:48px 0 14px}h3{font-size:1rem;margin:24px 0 8px}
.lead{font-size:1.08rem;max-width:88ch;margin:0}
.note{color:var(--muted);font-size:.875rem;max-width:96ch;margin:10px 0 0}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:9px 10px;border-bottom:1px solid var(--rule);text-align:right;vertical-align:middle;white-space:nowrap}
th:first-child{text-align:left;padding-left:0}
thead th{vertical-align:bottom;line-height:1.3;font-weight:600;border-bottom:1px solid var(--muted)}
thead small{display:block;white-space:nowrap;font-weight:400;font-size:.75rem;color:var(--muted)}
tbody th{font-weight:600}.results{width:100%;margin-top:26px}.results thead th{white-space:normal}
.results tbody th{position:sticky;left:0;background:var(--page);white-space:normal;min-width:9.5em;line-height:1.3}
.bar{background:linear-gradient(var(--tint),var(--tint)) 6px 50%/calc((100% - 6px)*var(--part)) 24px no-repeat}
.lower{--tint:var(--bad)}.higher{--tint:var(--good)}
.settings td,.settings th{font-size:.82rem;padding:4px 18px 4px 0;text-align:left;vertical-align:top;font-weight:400}
.settings thead th,.settings .differs>*{font-weight:650}.settings .said{white-space:pre-wrap;overflow-wrap:anywhere}
.read{display:grid;grid-template-columns:max-content 1fr;gap:7px 22px;margin:0;font-size:.9rem;max-width:96ch}
.read dt{font-weight:600}.read dd{margin:0;color:var(--muted)}
.grid{display:grid;gap:18px;grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr))}
figure{margin:0;padding:14px 16px;background:var(--card);border:1px solid var(--rule);border-radius:10px;min-width:0}
figcaption{font-weight:600;font-size:.9rem;margin-bottom:8px}
img{display:block;width:100%;height:auto;image-rendering:pixelated;border-radius:4px}
svg{display:block;width:100%;height:auto;overflow:visible;font-size:13px;fill:var(--muted)}
.key{display:flex;flex-wrap:wrap;gap:2px 16px;list-style:none;margin:0 0 8px;padding:0;font-size:.82rem}
.key li:before{content:"";display:inline-block;width:16px;margin-right:7px;vertical-align:middle;
border-top:3px var(--e,solid) var(--c)}
summary{cursor:pointer;font-weight:600}details{margin-top:48px;border-top:1px solid var(--rule);padding-top:14px}
pre{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px 14px;font-size:.85rem;
white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
@media (max-width:640px){main{padding:24px 16px 48px}h1{font-size:1.5rem}.read{grid-template-columns:1fr;gap:0}
.read dd{margin-bottom:10px}svg{font-size:17px}figure{padding:12px}.results tbody th{min-width:7.5em;max-width:9em}}
"""
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$css</style>
</head>
<body><main>
<h1>$title</h1>
<p class="lead">$statement</p>
$body
</main></body>
</html>
""")


def _map(tree: Any, *keys: str) -> Mapping[str, Any]:
    found = at(tree, *keys)
    return found if isinstance(found, Mapping) else {}


def counts(cell: Any) -> tuple[int, int] | None:
    """Return (hits, total) of {"success" or "correct": n, "total": N}, or None when there is nothing to show."""
    hits, total = number(at(cell, "success")), number(at(cell, "total"))
    hits = number(at(cell, "correct")) if math.isnan(hits) else hits
    return (int(hits), int(total)) if 0 <= hits <= total and total >= 1 else None


def budget_charts(models: Mapping[str, Any]) -> list[str]:
    """Return a chart an attack: cases in which the concept came back, against the attack's steps."""
    attacks: dict[str, dict[str, Points]] = {}
    for name, model in models.items():
        for attack, rows in _map(model, "asr_by_budget").items():
            pairs = [(number(row[0]), number(row[1])) for row in rows or () if len(row) == 2]
            attacks.setdefault(attack, {})[name] = [p for p in pairs if not math.isnan(p[0])]
    labels = {where.split()[1]: label for label, where, *_ in columns(models) if " " in where}
    totals = {a: [number(at(m, "asr", a, "total")) for m in models.values()] for a in attacks}
    return [
        line_chart(
            f"Concept brought back by {labels.get(a, a)}, cases",
            series,
            "attack steps",
            [0.0, *(t for t in totals[a] if not math.isnan(t))],
        )
        for a, series in attacks.items()
    ]


def _cell(model: Any, where: str, better: str) -> str:
    """Return a table cell: "n / N" over a bar with the interval as its tooltip, or a number, or "-"."""
    found = at(model, *where.split())
    pair, single = counts(found), number(found)
    if pair is None:
        return "<td>-</td>" if math.isnan(single) else f"<td>{single:.{3 if abs(single) < 1000 else 6}g}</td>"
    low, high = wilson_interval(*pair)
    note = f"{pair[0] / pair[1]:.1%}; 95 % interval (Wilson) {low:.1%} to {high:.1%}"
    parts = {name: counts(part) for name, part in _map(found, "by").items()}
    note += "".join(f"; {name} {part[0]} / {part[1]}" for name, part in parts.items() if part)
    style = f"--part:{pair[0] / pair[1]:.3f}"
    return f'<td class="bar {better}" style="{style}" title="{text(note)}">{pair[0]} / {pair[1]}</td>'


def results_table(models: Mapping[str, Any]) -> str:
    """Return the table: a row a model, a column a measurement."""
    shown = columns(models)
    head = "".join(f'<th scope="col">{label}<small>{better} is better</small></th>' for label, _, better, _ in shown)
    rows = "".join(
        f'<tr><th scope="row">{text(NAMES.get(name, name))}</th>'
        + "".join(_cell(model, where, better) for _, where, better, _ in shown)
        + "</tr>"
        for name, model in models.items()
    )
    return (
        f'<div class="scroll"><table class="results"><thead><tr><th scope="col">Model</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def statement(models: Mapping[str, Any]) -> list[str]:
    """Say in words what the table says of every model but the original: plain prompts, worst route, what is kept."""

    def of(pair: tuple[int, int] | None) -> str:
        return f"{pair[0]} of {pair[1]}" if pair else "-"

    said: list[str] = []
    for name in [n for n in models if n != "original"] or list(models):
        attempts = [(label, where) for label, where, *_ in columns(models) if where.startswith(("asr ", "attacks "))]
        tested = {label: c for label, where in attempts if (c := counts(at(models, name, *where.split())))}
        worst = max(tested, key=lambda k: tested[k][0] / tested[k][1], default="")
        kept = counts(at(models, name, "utility", "retained_accuracy"))
        line = "{}: {} and {}{}" if said else "{}: {} by the plain prompts, {} at the worst tested route{}"
        line += ("; {}." if said else "; {} retained objects right.") if kept else "."
        route = f" ({worst})" if worst else ""
        said.append(
            line.format(NAMES.get(name, name), of(tested.get("Plain prompts")), of(tested.get(worst)), route, of(kept))
        )
    return said or ["No model was measured."]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {k: v for key, part in tree.items() for k, v in flatten(part, f"{prefix}.{key}".strip(".")).items()}


def settings_table(columns: Mapping[str, Any]) -> str:
    """Return a table of settings, a column a model, the rows that differ set off."""
    flat = {name: flatten(tree) for name, tree in columns.items() if isinstance(tree, Mapping) and tree}
    head = "".join(f'<th scope="col">{text(NAMES.get(name, name))}</th>' for name in flat)
    rows = ""
    for key in dict.fromkeys(key for tree in flat.values() for key in tree):
        cells = [text(tree.get(key, "-")) for tree in flat.values()]
        mark = ' class="differs"' if len(set(cells)) > 1 else ""
        rows += f'<tr{mark}><th scope="row">{text(key)}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
    if not rows:
        return '<p class="note">-</p>'
    table = f'<table class="settings"><thead><tr><th scope="col">Setting</th>{head}</tr></thead><tbody>{rows}</tbody>'
    return f'<div class="scroll">{table}</table></div>'


def picture_grid(pictures: Mapping[str, bytes]) -> str:
    """Return a figure a picture, the PNG inside the page."""
    return "".join(
        f'<figure><figcaption>{text(name)}</figcaption><img alt="{text(name)}" '
        f'src="data:image/png;base64,{b64encode(png).decode()}"></figure>'
        for name, png in pictures.items()
    )


def render(
    report: Mapping[str, Any], pictures: Mapping[str, bytes], curves: Mapping[str, Mapping[str, Sequence[float | None]]]
) -> str:
    """Return the page (ASCII). What the report lacks is shown as "-".

    Args:
        report: the content of report.json.
        pictures: caption -> PNG.
        curves: chart title -> series -> one value an iteration; NaN leaves a gap, None has no point.
    """
    models = _map(report, "models")
    charts = budget_charts(models)
    for title, series in curves.items():
        points = {k: [(i + 1.0, number(y)) for i, y in enumerate(ys) if y is not None] for k, ys in series.items()}
        charts.append(line_chart(title, points, "iteration"))
    read = "".join(
        f"<dt>{label}</dt><dd>{note} {better.title()} is better.</dd>" for label, _, better, note in columns(models)
    )
    budget = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in flatten(_map(report, "budget")).items()) or "-"
    concept, kind = (at(report, key) or "-" for key in ("concept", "kind"))
    by = {k.replace("_", " ").title(): v for k, v in _map(report, "judge").items() if not isinstance(v, list)}
    judge = "".join(f" {k}: {v}." for k, v in by.items())
    body = [
        results_table(models),
        f'<p class="note">{text(f"Concept: {concept} ({kind}). Budget: {budget}.{judge}")}</p>',
        f'<h2>How to read the table</h2><dl class="read">{read}</dl><p class="note">{HINT}</p>',
        f'<h2>Pictures</h2><p class="note">{FRAMED}</p><div class="grid">{picture_grid(pictures)}</div>'
        if pictures
        else "",
        prompt_tables(models),
        f'<h2>Curves</h2><div class="grid">{"".join(charts)}</div>' if charts else "",
        "<details><summary>Settings, environment and command</summary><h3>Settings</h3>",
        settings_table({name: at(model, "config") for name, model in models.items()}),
        "<h3>Cost of the attacks</h3>",
        settings_table({name: costs(model) for name, model in models.items()}),
        "<h3>Environment</h3>",
        settings_table({"Value": at(report, "environment")}),
        f"<h3>Command</h3><pre>{text(at(report, 'command') or '-')}</pre></details>",
    ]
    title, said = f"Concept erasure report: {text(concept)}", "<br>".join(map(text, statement(models)))
    return PAGE.substitute(title=title, css=CHART_CSS + CSS, statement=said, body="\n".join(body))
