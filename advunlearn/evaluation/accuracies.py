"""How much of everything else is still drawn as it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..judges.base import JudgeOutput
from .cases import Cases, Labelled
from .metrics import count


def accuracies(cases: Cases, seen: JudgeOutput) -> dict[str, Any]:
    """Return the counts of retained pictures that show their object, that of neighbours, and their style.

    Args:
        cases: whose retained rows the pictures are of. The neighbours of an object are its family; those of a style are
            the other styles.
        seen: what the judge saw in them.
    """
    rows = cases.retained
    object_right, style_right = (
        torch.tensor([name in labels for name, labels in zip(names, seen.labels, strict=True)])
        for names in ([r.object for r in rows], [r.style for r in rows])
    )
    labelled, styled, near = (
        torch.tensor(flags)
        for flags in (
            [bool(r.object) for r in rows],
            [bool(r.style) for r in rows],
            [r in cases.neighbours for r in rows],
        )
    )
    kept = object_right if cases.kind == "object" else style_right
    parts = {
        "retained_accuracy": object_right[labelled],
        "neighbour_accuracy": kept[near],
        "style_accuracy": style_right[styled],
    }
    return {name: count(hits, "correct") for name, hits in parts.items() if len(hits)}


def decisions(rows: Sequence[Labelled], seen: JudgeOutput) -> list[dict[str, Any]]:
    """Return for each picture what it was to show, what the judge saw, and whether that is so."""
    found = []
    for row, labels in zip(rows, seen.labels, strict=True):
        wanted = {what: name for what, name in (("object", row.object), ("style", row.style)) if name}
        right = {f"{what}_right": name in labels for what, name in wanted.items()}
        found.append({**wanted, "seen": sorted(labels), **right})
    return found
