"""The trajectory bank: what the frozen original model says along its own sampling paths.

AdvUnlearn trains on (x_t, eps_o(x_t|0), eps_o(x_t|c)), with x_t drawn by sampling the original model. That model never
changes, so the distribution of these triples never changes either: they are sampled once and drawn many times. A
guided DDIM run computes both predictions at every step anyway, so T steps yield T triples for 2 T forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import BankConfig
from .denoisers.base import Denoiser
from .sampling import batch_of, ddim_steps

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Triples:
    """B draws from a bank, on the denoiser's device, in fp32."""

    x_t: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)
    uncond: Tensor  # (B, C, h, w)
    cond: Tensor  # (B, C, h, w)
    prompt: Tensor  # (B,) index of the prompt each sample was drawn for


class TrajectoryBank:
    """N trajectories of S steps, spread over the prompts, the oldest replaced when they have been used enough.

    Args:
        denoiser: the frozen original model.
        cond: (P, L, D) conditioning of the prompts under the original text encoder.
        uncond: (1, L, D) conditioning of the empty prompt.
        size: number of trajectories N.
        config: sampling steps, guidance, storage dtype, reuse.
        generator: source of the starting noise and of the draws, on the CPU.
        report: called with (trajectories sampled, trajectories to sample).
    """

    chunk = 32  # trajectories sampled in one batch

    def __init__(
        self,
        denoiser: Denoiser,
        cond: Tensor,
        uncond: Tensor,
        size: int,
        config: BankConfig,
        generator: torch.Generator,
        report: Report | None = None,
    ) -> None:
        self.denoiser, self.cond, self.uncond, self.config, self.generator = denoiser, cond, uncond, config, generator
        shape, dtype = (size, config.sampling_steps, *denoiser.latent_shape), getattr(torch, config.dtype)
        self.x_t, self.eps_uncond, self.eps_cond = (torch.empty(shape, dtype=dtype) for _ in range(3))
        self.timesteps = torch.empty(config.sampling_steps, dtype=torch.long)
        self.prompt = torch.zeros(size, dtype=torch.long)
        self.draws, self.oldest, self.sampled = 0, 0, 0
        step = batch_of(self.chunk, self.x_t)
        for start in range(0, size, step):
            self._sample(list(range(start, min(start + step, size))))
            if report is not None:
                report(min(start + step, size), size)

    def __len__(self) -> int:
        return len(self.x_t)

    def _sample(self, rows: Sequence[int], last: int | None = None) -> None:
        """Fill some rows with new trajectories, of the prompts whose turn it is; stop after step `last`."""
        self.prompt[list(rows)] = torch.arange(self.sampled, self.sampled + len(rows)) % len(self.cond)
        shape = (len(rows), *self.denoiser.latent_shape)
        noise = torch.randn(shape, generator=self.generator).to(self.denoiser.device)
        cond = self.cond[self.prompt[list(rows)].to(self.cond.device)]
        steps = ddim_steps(
            self.denoiser, cond, self.uncond, noise, self.config.sampling_steps, self.config.guidance_scale
        )
        for k, step in enumerate(steps):
            self.timesteps[k] = step.timestep
            for store, value in ((self.x_t, step.x_t), (self.eps_uncond, step.uncond), (self.eps_cond, step.cond)):
                store[list(rows), k] = value.to(store.device, store.dtype)
            if k == last:
                break
        self.sampled += len(rows)

    def _refresh(self) -> None:
        """Replace the oldest trajectories once a triple has been drawn `reuse` times on average over its life."""
        count = min(batch_of(self.chunk, self.x_t), len(self))
        share = max(1, round(self.config.reuse * count * self.config.sampling_steps))
        while self.draws >= share:
            self.draws -= share
            self._sample([(self.oldest + i) % len(self) for i in range(count)])
            self.oldest = (self.oldest + count) % len(self)

    def draw(self, batch: int) -> Triples:
        """Return `batch` triples, trajectory and step drawn uniformly and independently."""
        self.draws += batch
        self._refresh()
        row = torch.randint(len(self), (batch,), generator=self.generator)
        k = torch.randint(self.config.sampling_steps, (batch,), generator=self.generator)
        device = self.denoiser.device
        x_t, uncond, cond = (s[row, k].to(device).float() for s in (self.x_t, self.eps_uncond, self.eps_cond))
        return Triples(x_t, self.timesteps[k].to(device), uncond, cond, self.prompt[row].to(device))


class FreshSampler(TrajectoryBank):
    """The published way, for comparison: every draw samples its trajectories anew."""

    def draw(self, batch: int) -> Triples:
        """Return `batch` triples, each from a trajectory of its own that was sampled for this draw."""
        k = torch.randint(self.config.sampling_steps, (batch,), generator=self.generator)
        self._sample(list(range(batch)), last=int(k.max()))
        row, device = torch.arange(batch), self.denoiser.device
        x_t, uncond, cond = (s[row, k].to(device).float() for s in (self.x_t, self.eps_uncond, self.eps_cond))
        return Triples(x_t, self.timesteps[k].to(device), uncond, cond, self.prompt[row].to(device))
