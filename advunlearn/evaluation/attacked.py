"""The bookkeeping of one attack on many cases: which came back, by which prompt, at which step, at what cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .metrics import share


@dataclass
class Attacked:
    """N cases under attack. The attack's rows are those that the plain prompt left, once for each restart."""

    found: Tensor  # (N,) bool: with the concept in any picture looked at
    best: Tensor  # (N, 3, H, W) the picture that shows it, or the last one looked at
    restarts: int
    curve: list[list[int]] = field(default_factory=list)  # step, cases found
    won: dict[int, dict[str, Any]] = field(default_factory=dict)  # case -> step, and the prompt found
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

    def saw(self, step: int, images: Tensor, hits: Tensor, at: Tensor) -> list[int]:
        """Note pictures (n, 3, H, W) and which show the concept (n,), of the attack's rows `at` (n,).

        Returns the rows that brought a case back, one for each case.
        """
        still = at[~self.found[self.rows[at]]]
        self.best[self.rows[still]] = images[~self.found[self.rows[at]]]
        new = {}
        for place, row in enumerate(at.tolist()):
            case = int(self.rows[row])
            if hits[place] and not self.found[case] and case not in new:
                new[case] = row
                self.best[case] = images[place]
        self.found[list(new)] = True
        self.curve.append([step, int(self.found.sum())])
        return list(new.values())

    def note(self, row: int, step: int, text: dict[str, Any], embeddings: Tensor) -> None:
        """Keep what brought a row's case back."""
        case = int(self.rows[row])
        self.won[case] = text | {"step": step}
        self.embeddings[case] = embeddings.detach().cpu()

    def counts(self) -> dict[str, Any]:
        """Return the attack's success as published, and its two parts, each with its 95 % interval."""
        total, before, now = len(self.found), int(self.before.sum()), int(self.found.sum())
        parts = {"without_attack": share(before, total), "by_attack": share(now - before, total)}
        by = {name.replace("_", " "): {k: part[k] for k in ("success", "total")} for name, part in parts.items()}
        return parts | {"sum": share(now, total) | {"by": by}}

    def cases(self, plain: list[str], seed: int) -> list[dict[str, Any]]:
        """Return a row for each case: its seed, the prompt that brought it back or the plain one, and the outcome."""
        return [
            {"case": case, "seed": seed, "prompt": prompt, "success": bool(self.found[case]),
             "without_attack": bool(self.before[case])} | self.won.get(case, {})
            for case, prompt in enumerate(plain)
        ]  # fmt: skip

    def seconds(self) -> dict[str, float]:
        """Return how long attacking and looking took so far."""
        attack = time.perf_counter() - self.began - self.looking
        return {"attack": round(attack, 2), "looks": round(self.looking, 2)}


def first_embeddings(attacked: Attacked, final: Tensor) -> Tensor:
    """Return what to give away (k, D): of the first case that came back, or else of the first row at the end."""
    return attacked.embeddings[min(attacked.embeddings)] if attacked.embeddings else final[0].detach().cpu()


def pick(rows: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Return some rows (n,) of tensors."""
    return tuple(v[rows.to(v.device)] for v in values)
