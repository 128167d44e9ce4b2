"""What is measured, and the numbers that come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..models.denoiser import Denoiser


@dataclass(frozen=True)
class Subject:
    """What is measured: an encoder and a denoiser; the original model's own where they were not trained."""

    encoder: Any
    denoiser: Denoiser


@dataclass
class Measurement:
    """The numbers of one subject, as they go into report.json, and the pictures behind them."""

    asr: dict[str, dict[str, Any]] = field(default_factory=dict)
    asr_by_budget: dict[str, list[list[int]]] = field(default_factory=dict)
    utility: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)  # "clean", "unlearndiffatk", ...: (n, 3, H, W)
    prompts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # adversarial prompts found
    attacks: dict[str, dict[str, Any]] = field(default_factory=dict)  # success in its parts, intervals, cost
    cases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of each attack: a row for each picture
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)  # of each attack
    embeddings: dict[str, Tensor] = field(default_factory=dict)  # found by each attack: (k, D)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON part; the same run gives the same."""
        return {
            "asr": self.asr,
            "asr_by_budget": self.asr_by_budget,
            "utility": self.utility,
            "prompts": self.prompts,
            "attacks": self.attacks,
            "cases": self.cases,
        }

    def row(self) -> dict[str, Any]:
        """Return the JSON part with the seconds that it took."""
        return self.to_dict() | {"attack_seconds": self.seconds}
