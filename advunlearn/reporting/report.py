"""Write an evaluation's results: report.json, report.html, overview.png, and a table for the terminal."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..config.attacks import DEFAULT_ATTACKS
from ..evaluation.evaluator import Measurement
from ..files import JsonDict, write_atomic
from .images import grid, overview, png
from .page import format_warnings, read_counts, render
from .page_metrics import list_other_attacks, look_up, look_up_mapping, look_up_reason

SHORT_NAMES = {"original": "original", "esd": "ESD, UNet", "esd_text": "ESD, text encoder", "advunlearn": "AdvUnlearn"}
UTILITY = {  # column of the table -> metric
    "retained": "retained_accuracy",
    "pairs": "pair_accuracy",
    "backgrounds": "background_accuracy",
    "in-prompt": "in_prompt_accuracy",
}
LOSSES = ("erase", "retain", "attack_start", "attack_end")


def write_json(path: pathlib.Path, value: object) -> None:
    """Write a JSON file, atomically."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def format_table(report: JsonDict) -> str:
    """Return a report's counts as columns of text."""
    models = look_up_mapping(report, "models")
    paths = {name: f"asr {name}" for name in ("clean", "synonyms", *DEFAULT_ATTACKS)}
    paths |= {name: f"attacks {name} sum" for name in list_other_attacks(models)}
    paths |= {name: f"utility {metric}" for name, metric in UTILITY.items()}
    lines = [f"{'success of ' + repr(report['concept']):<24}" + "".join(f"{head:>16}" for head in paths)]
    for name, model in models.items():
        cells = (_format_count(model, path) for path in paths.values())
        lines.append(f"{name:<24}" + "".join(f"{cell:>16}" for cell in cells))
    lines += [*format_warnings(models), *_list_reasons(models)]
    if cut := look_up_mapping(report, "cut_prompts"):
        lines.append(
            f"{len(cut)} prompts are too long for the text encoder and were cut; what they name there is missing"
        )
    return "\n".join(lines)


def _format_count(model: object, path: str) -> str:
    counts = read_counts(look_up(model, *path.split()))
    if counts:
        return f"{counts[0]}/{counts[1]}"
    return "not measured" if look_up_reason(model, path) else "-"


def _list_reasons(models: Mapping[str, object]) -> list[str]:
    """Return why columns of the table were not measured, a line for each reason."""
    columns: dict[str, list[str]] = {}
    for name, metric in UTILITY.items():
        for reason in dict.fromkeys(look_up_reason(model, f"utility {metric}") for model in models.values()):
            columns.setdefault(reason, []).append(name)
    return [f"not measured: {', '.join(names)} ({reason})" for reason, names in columns.items() if reason]


def list_successes(measured: Measurement, what: str) -> list[bool]:
    """Return for each image of a measurement whether it shows the concept."""
    return [bool(row.get("success")) for row in measured.cases.get(what, ())]


def _image_grids(measured: Mapping[str, Measurement]) -> Iterator[tuple[str, bytes]]:
    """Yield captions and PNGs of every model's images."""
    for name, measurement in measured.items():
        for what, images in measurement.images.items():
            yield f"{name}: {what}", png(grid(images, 4, framed=list_successes(measurement, what)), 2)


def _overview_rows(measured: Mapping[str, Measurement]) -> Iterator[tuple[str, Any]]:
    """Yield titles and images (N, 3, H, W) of the overview's rows."""
    for name, measurement in measured.items():
        for what in ("clean",) if name == "original" else ("clean", "unlearndiffatk"):
            if what in measurement.images:
                yield f"{SHORT_NAMES.get(name, name)}\n{what}", measurement.images[what]


def write_report(
    folder: pathlib.Path,
    report: JsonDict,
    measured: Mapping[str, Measurement],
    losses: Mapping[str, list[dict[str, float]]],
) -> None:
    """Write report.json, overview.png and a self-contained report.html with the images and the loss curves.

    Args:
        folder: where the files are written.
        report: the content of report.json.
        measured: the models' measurements, with their images.
        losses: the losses of each trained model, a mapping per iteration.
    """
    curves = {
        f"Training losses: {name}": {
            key: [row.get(key) for row in rows] for key in LOSSES if any(key in r for r in rows)
        }
        for name, rows in losses.items()
    }
    write_atomic(folder / "overview.png", png(overview(dict(_overview_rows(measured)))))
    write_json(folder / "report.json", report)
    write_atomic(folder / "report.html", render(report, dict(_image_grids(measured)), curves).encode())
