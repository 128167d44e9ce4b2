"""Metrics: counts with their intervals, accuracies of retained images, the Frechet distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..files import JsonDict
from ..judges.base import JudgeOutput, background_label
from .cases import Cases, LabelledPrompt

Row = JsonDict  # a JSON object of the report
VISIBLE = 2 / 255  # differences of an image's values up to this cannot be seen


@dataclass
class Measurement:
    """The metrics of one model, as they are written to report.json, and the images behind them."""

    asr: dict[str, Row] = field(default_factory=dict)  # successes: "clean", "synonyms", and each attack
    asr_by_budget: dict[str, list[list[int]]] = field(default_factory=dict)  # attack -> [step, successes]
    utility: Row = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)  # "clean", "unlearndiffatk", ...: (n, 3, H, W)
    prompts: dict[str, list[Row]] = field(default_factory=dict)  # attack -> successful adversarial prompts
    attacks: dict[str, Row] = field(default_factory=dict)  # attack -> success in its parts, intervals, cost
    cases: dict[str, list[Row]] = field(default_factory=dict)  # "clean", an attack, ... -> a row per image
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)  # attack -> seconds of attacking and judging
    embeddings: dict[str, Tensor] = field(default_factory=dict)  # attack -> (k, D) adversarial embeddings
    warnings: list[str] = field(default_factory=list)  # why the counts cannot be trusted
    not_measured: dict[str, str] = field(default_factory=dict)  # utility metric -> why it is missing

    def to_dict(self) -> Row:
        """Return the JSON part without the seconds; the same run gives the same."""
        return {
            "asr": self.asr,
            "asr_by_budget": self.asr_by_budget,
            "utility": self.utility,
            "prompts": self.prompts,
            "attacks": self.attacks,
            "cases": self.cases,
            **({"warnings": self.warnings} if self.warnings else {}),
            **({"not_measured": self.not_measured} if self.not_measured else {}),
        }

    def to_row(self) -> Row:
        """Return the JSON part with the seconds."""
        return self.to_dict() | {"attack_seconds": self.seconds}


def find_image_fault(images: Tensor, rows: Sequence[Row]) -> str:
    """Return what is wrong if no image (N, 3, H, W) shows anything: all blank, all the same, or NaN; otherwise "".

    `rows` are the images' prompts and seeds: images that had the same ones may be the same.
    """
    if not len(images):
        return ""
    if not images.isfinite().all():
        return f"{int((~images.isfinite()).flatten(1).any(1).sum())} of {len(images)} images are not finite"
    spread = (images.amax((2, 3)) - images.amin((2, 3))).amax(1)
    if (spread <= VISIBLE).all():
        return f"all {len(images)} images are blank"
    inputs = {(row.get("prompt"), row.get("noise_seed", row.get("case"))) for row in rows}
    if len(inputs) > 1 and ((images - images[:1]).abs() <= VISIBLE).all():
        return f"all {len(images)} images are identical"
    return ""


def count_hits(hits: Tensor, key: str = "success") -> dict[str, int]:
    """Return {"success": n, "total": N} of a boolean tensor (N,): counts, never bare percentages."""
    return {key: int(hits.sum()), "total": len(hits)}


def wilson_interval(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927), 95 % by default."""
    share = hits / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def count_with_interval(hits: int, total: int) -> Row:
    """Return a count of successes with its 95 % interval (Wilson)."""
    return {"success": hits, "total": total, "interval": [round(end, 4) for end in wilson_interval(hits, total)]}


def count_by_concept(cases: Cases, hits: Tensor) -> Row:
    """Return {"by": the successes of the plain prompts (N,) for each concept}; {} if there is only one concept."""
    concepts = len(cases.concepts)
    if concepts == 1:
        return {}
    return {"by": {name: count_hits(hits[i::concepts]) for i, name in enumerate(cases.concepts)}}


def count_correct(cases: Cases, judged: JudgeOutput) -> Row:
    """Return how many images of the retained prompts show their object, their style, and how many neighbours do.

    Args:
        cases: the cases whose retained prompts were generated. The neighbours of an object are the objects of its
            family, those of a style are the other styles.
        judged: the judge's output for the images.
    """
    rows = cases.retained
    object_right = _find_labels([row.object for row in rows], judged)
    style_right = _find_labels([row.style for row in rows], judged)
    neighbour = torch.tensor([row in cases.neighbours for row in rows])
    parts = {
        "retained_accuracy": object_right[torch.tensor([bool(row.object) for row in rows])],
        "neighbour_accuracy": (object_right if cases.kind == "object" else style_right)[neighbour],
        "style_accuracy": style_right[torch.tensor([bool(row.style) for row in rows])],
    }
    return {name: count_hits(hits, "correct") for name, hits in parts.items() if len(hits)}


def _find_labels(wanted: Sequence[str], judged: JudgeOutput) -> Tensor:
    """Return in which images the judge sees the label wanted there, (N,) bool."""
    return torch.tensor([name in labels for name, labels in zip(wanted, judged.labels, strict=True)])


def list_decisions(rows: Sequence[LabelledPrompt], judged: JudgeOutput) -> list[Row]:
    """Return for each image the labels wanted, the labels that the judge sees, and whether the former are seen."""
    decisions = []
    for row, labels in zip(rows, judged.labels, strict=True):
        wanted = {what: getattr(row, what) for what in ("object", "either", "style", "background")}
        wanted = {what: name for what, name in wanted.items() if name}
        right = {
            "object_right": bool({row.object, row.either} & labels),
            "style_right": row.style in labels,
            "background_right": background_label(row.background) in labels,
        }
        right = {name: value for name, value in right.items() if name.removesuffix("_right") in wanted}
        decisions.append({**wanted, "seen": sorted(labels), **right})
    return decisions


def count_decisions(decisions: Sequence[Row]) -> Row:
    """Return in how many images all labels wanted are seen; if objects and backgrounds are wanted, also each alone."""
    right = [[value for name, value in row.items() if name.endswith("_right")] for row in decisions]
    total: Row = count_hits(torch.tensor([all(values) for values in right]), "correct")
    parts = {what: [row[f"{what}_right"] for row in decisions if what in row] for what in ("object", "background")}
    if not all(parts.values()):
        return total
    return total | {"by": {what: count_hits(torch.tensor(values), "correct") for what, values in parts.items()}}


def _square_root(matrix: Tensor) -> Tensor:
    """Return the square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets of features (N, D), (M, D).

    The Frechet distance of arXiv 1706.08500, on a judge's features instead of Inception's.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(x.T.cov()) for x in (a, b))
    root = _square_root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)
