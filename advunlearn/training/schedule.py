"""The schedule of a run: which iterations attack, and which concept has its turn."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.training import RunConfig


@dataclass(frozen=True)
class Schedule:
    """When a run warms up, searches a new attack and reuses the last one. Iterations are counted from 0."""

    iterations: int
    warmup: int  # iterations on the clean prompt only
    attack_interval: int  # iterations that share an attack
    attacks: bool  # whether there is an adversary at all

    @classmethod
    def from_config(cls, run: RunConfig) -> Schedule:
        """Return the schedule of a run."""
        interval = run.attack.attack_interval if run.train.attacks else 1
        return cls(run.train.iterations, run.train.warmup, interval, run.train.attacks)

    def is_attacked(self, iteration: int) -> bool:
        """Return whether an iteration trains on adversarial prompts."""
        return self.attacks and iteration >= self.warmup

    def starts_attack(self, iteration: int) -> bool:
        """Return whether an iteration searches a new attack; the others reuse the last one."""
        return self.is_attacked(iteration) and (iteration - self.warmup) % self.attack_interval == 0

    def attacks_before(self, iteration: int) -> int:
        """Return how many attacks were searched before an iteration."""
        attacked = max(0, iteration - self.warmup) if self.attacks else 0
        return -(-attacked // self.attack_interval)

    @property
    def num_attacks(self) -> int:
        """Number of attacks that the whole run searches."""
        return self.attacks_before(self.iterations)

    def turn(self, iteration: int) -> int:
        """Return whose turn it is, of concepts in turn: a turn lasts one attack; turn 0 follows the warm-up."""
        return (iteration - self.warmup) // self.attack_interval
