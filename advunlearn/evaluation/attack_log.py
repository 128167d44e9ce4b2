"""The bookkeeping of one attack on many cases: which came back, by which prompt, at which step, at what cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .metrics import share


@dataclass
class AttackLog:
    """N cases under attack. The attack's rows are those that the plain prompt left, once for each restart."""

    found: Tensor  # (N,) bool: with the concept in any picture looked at
    best: Tensor  # (N, 3, H, W) the picture that shows it, or the last one looked at
    restarts: int
    curve: list[list[int]] = field(default_factory=list)  # step, cases found
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)  # case -> step and prompt of its picture in `best`
    embeddings: dict[int, Tensor] = field(default_factory=dict)  # case -> (k, D)
    looking: float = 0.0  # seconds spent on drawing and judging

    def __post_init__(self) -> None:
        self.before = self.found.clone()
        self.rows = (~self.before).nonzero().flatten().repeat_interleave(self.restarts)
        self.curve.append([0, int(self.found.sum())])
        self.began = time.perf_counter()

    def open_rows(self) -> Tensor:
        """Return the numbers of the attack's rows whose case has not come back yet."""
        return (~self.found[self.rows]).nonzero().flatten()

    def saw(
        self, step: int, images: Tensor, hits: Tensor, at: Tensor, notes: Sequence[dict[str, Any]], embeddings: Tensor
    ) -> None:
        """Note what was looked at of the attack's rows `at` (n,).

        Args:
            step: of the attack.
            images: (n, 3, H, W) pictures.
            hits: (n,) which of them show the concept; the first of a case brings it back.
            notes: n times what each picture was drawn of.
            embeddings: (n, k, D) likewise.
        """
        for place, case in enumerate(self.rows[at].tolist()):
            if self.found[case]:
                continue
            self.best[case], self.notes[case] = images[place], notes[place] | {"step": step}
            if hits[place]:
                self.found[case], self.embeddings[case] = True, embeddings[place].detach().cpu()
        self.curve.append([step, int(self.found.sum())])

    def won(self) -> dict[int, dict[str, Any]]:
        """Return what brought each case back that the attack did."""
        return {case: note for case, note in sorted(self.notes.items()) if self.found[case]}

    def counts(self) -> dict[str, Any]:
        """Return the attack's success as published, and its two parts, each with its 95 % interval."""
        total, before, now = len(self.found), int(self.before.sum()), int(self.found.sum())
        parts: dict[str, Any] = {"without_attack": share(before, total), "by_attack": share(now - before, total)}
        by = {name.replace("_", " "): {k: part[k] for k in ("success", "total")} for name, part in parts.items()}
        exact = [note["exact"] for note in self.won().values() if "exact" in note]
        return parts | {"sum": share(now, total) | {"by": by}} | ({"exact": sum(exact)} if exact else {})

    def cases(self, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a row for each case: what was asked, what its picture was drawn of instead, and the outcome."""
        return [
            row
            | {"success": bool(self.found[case]), "without_attack": bool(self.before[case])}
            | self.notes.get(case, {})
            for case, row in enumerate(asked)
        ]

    def seconds(self) -> dict[str, float]:
        """Return how long attacking and looking took so far."""
        attack = time.perf_counter() - self.began - self.looking
        return {"attack": round(attack, 2), "looks": round(self.looking, 2)}


def first_embeddings(attacked: AttackLog, final: Tensor) -> Tensor:
    """Return what to give away (k, D): of the first case that came back, or else of the first row at the end."""
    return attacked.embeddings[min(attacked.embeddings)] if attacked.embeddings else final[0].detach().cpu()


def pick(rows: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Return some rows (n,) of tensors."""
    return tuple(v[rows.to(v.device)] for v in values)
