"""The published way to draw samples, beside which the trajectory bank stands."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.training import BankConfig
from .bank import BankSamples, TrajectoryBank


class FreshSampler(TrajectoryBank):
    """The published way, for comparison: every draw samples its trajectories anew, and none are kept."""

    keeps = False

    def _next(self, count: int) -> Tensor:
        """Return the prompts in turn, of those that draws are of."""
        prompts = self.only or range(self.prompts)
        return prompts.start + torch.arange(self.sampled, self.sampled + count) % len(prompts)

    @classmethod
    def sampling_of(cls, count: int, config: BankConfig) -> float:
        """All are sampled as far as the last step drawn: the largest of `count` uniform draws from 1 to S."""
        steps = config.sampling_steps
        return count * (steps - sum((k / steps) ** count for k in range(steps)))

    def draw(self, batch: int) -> BankSamples:
        """Return `batch` triples, each from a trajectory of its own that was sampled for this draw."""
        return self.sampled_at(torch.randint(self.config.sampling_steps, (batch,), generator=self.generator))

    def sampled_at(self, k: Tensor) -> BankSamples:
        """Sample a trajectory for each step number in `k` (B,); return its triple there."""
        if len(k) > len(self):
            self.allocate(len(k))
        self._sample(list(range(len(k))), last=int(k.max()))
        return self._triples(torch.arange(len(k)), k)
