"""Write what was measured: report.json, report.html, and a table for the terminal."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ..config.attacks import DEFAULT_ATTACKS
from ..evaluation.evaluator import Measurement
from ..files import write_atomic
from . import images as pictures
from . import page as html
from .columns import at, more_attacks

TITLES = {"original": "original", "esd": "ESD, UNet", "esd_text": "ESD, text encoder", "advunlearn": "AdvUnlearn"}
LOSSES = ("erase", "retain", "attack_start", "attack_end")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file, atomically."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def table(report: Mapping[str, Any]) -> str:
    """Return a report's counts as columns of text."""
    heads = {h: f"asr {h}" for h in ("clean", "routes", *DEFAULT_ATTACKS)}
    more = more_attacks(report["models"])
    heads |= {"each route" if name == "routes" else name: f"attacks {name} sum" for name in more}
    lines = [f"{'success of ' + repr(report['concept']):<24}" + "".join(f"{h:>16}" for h in (*heads, "retained"))]
    for name, row in report["models"].items():
        found = (at(row, *where.split()) for where in heads.values())
        cells = [f"{c['success']}/{c['total']}" if c else "-" for c in found]
        kept = row["utility"].get("retained_accuracy")
        cells.append(f"{kept['correct']}/{kept['total']}" if kept else "-")
        lines.append(f"{name:<24}" + "".join(f"{c:>16}" for c in cells))
    return "\n".join(lines)


def shows(measured: Measurement, what: str) -> list[bool]:
    """Return which pictures of a measurement show the concept."""
    return [bool(row.get("success")) for row in measured.cases.get(what, ())]


def write(
    folder: pathlib.Path,
    report: dict[str, Any],
    measured: Mapping[str, Measurement],
    losses: Mapping[str, list[dict[str, float]]],
) -> None:
    """Write report.json, overview.png and a self-contained report.html with the pictures and the loss curves."""
    images = {
        f"{name}: {what}": pictures.png(pictures.grid(rows, 4, framed=shows(m, what)), 2)
        for name, m in measured.items()
        for what, rows in m.pictures.items()
    }
    curves = {
        f"Training losses: {name}": {k: [row.get(k) for row in rows] for k in LOSSES if any(k in row for row in rows)}
        for name, rows in losses.items()
    }
    rows = {
        f"{TITLES.get(name, name)}\n{what}": m.pictures[what]
        for name, m in measured.items()
        for what in (("clean",) if name == "original" else ("clean", "unlearndiffatk"))
        if what in m.pictures
    }
    (folder / "overview.png").write_bytes(pictures.png(pictures.overview(rows)))
    write_json(folder / "report.json", report)
    (folder / "report.html").write_text(html.render(report, images, curves), encoding="utf-8")
