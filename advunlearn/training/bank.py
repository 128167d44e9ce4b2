"""The trajectory bank: what the frozen original model says along its own sampling paths.

AdvUnlearn trains on (x_t, eps_o(x_t|a), eps_o(x_t|c)), with x_t drawn by sampling the original model and a its anchor,
the empty prompt. That model never changes, so the distribution of these triples never changes either: they are sampled
once and drawn many times. A guided DDIM run computes both predictions at every step anyway, so T steps yield T triples
for 2 T forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..config.concept import ConceptConfig
from ..config.training import BankConfig
from ..models.ddim import batch_of, ddim_steps
from ..models.denoiser import Denoiser
from ..models.loading import TextToImage
from ..models.text_encoder import frozen

Report = Callable[[int, int], None]
Conditioning = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BankSamples:
    """B draws from a bank, on the denoiser's device, in fp32."""

    x_t: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)
    anchor: Tensor  # (B, C, h, w) prediction for what is to be drawn instead; none that counts without anchors
    cond: Tensor  # (B, C, h, w)
    prompt: Tensor  # (B,) index of the prompt each sample was drawn for

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: slice) -> BankSamples:
        return BankSamples(*(getattr(self, field.name)[rows] for field in fields(self)))


class TrajectoryBank:
    """N trajectories of S steps, spread over the prompts, the oldest replaced when they have been used enough.

    Args:
        denoiser: the frozen original model.
        cond: gives the conditioning (B, L, D) under the original text encoder of prompts by their numbers (B,); asked
            only for those that are sampled, since a retain set can be much larger than a bank.
        prompts: number of prompts P.
        uncond: (1, L, D) conditioning of the empty prompt.
        anchor: the same as `cond` for the prompts' anchors; none for the empty prompt, as published.
        size: number of trajectories N.
        config: sampling steps, guidance, storage dtype, draws per sample.
        generator: source of the starting noise and of the draws, on the CPU.
        report: called with (trajectories sampled, trajectories to sample).
        state: what `tensors` and `counters` returned; the bank goes on from there and samples nothing.
        anchored: whether the predictions for anchors are kept; what is retained needs none.
    """

    chunk = 32  # trajectories sampled in one batch
    keeps = True  # whether it is filled before a run
    only: range | None = None  # the prompts that draws are of; all of them where there is none

    def __init__(
        self,
        denoiser: Denoiser,
        cond: Conditioning,
        prompts: int,
        uncond: Tensor,
        size: int,
        config: BankConfig,
        generator: torch.Generator,
        report: Report | None = None,
        anchor: Conditioning | None = None,
        state: Mapping[str, Any] | None = None,
        anchored: bool = True,
    ) -> None:
        self.anchored = anchored
        self.denoiser, self.cond, self.uncond, self.config, self.generator = denoiser, cond, uncond, config, generator
        self.anchor, self.prompts = anchor, prompts
        self.timesteps = torch.empty(config.sampling_steps, dtype=torch.long)
        self.draws, self.oldest, self.sampled = 0, 0, 0
        self.allocate(size)
        if state is not None:
            self.restore(state)
            return
        step = batch_of(self.chunk, self.x_t)
        for start in range(0, size, step):
            self._sample(list(range(start, min(start + step, size))))
            if report is not None:
                report(min(start + step, size), size)

    def allocate(self, size: int) -> None:
        """Make room for `size` trajectories."""
        shape = (self.config.sampling_steps, *self.denoiser.latent_shape)
        dtype = getattr(torch, self.config.dtype) if self.keeps else torch.float32
        self.x_t, self.eps_cond = (torch.empty((size, *shape), dtype=dtype) for _ in range(2))
        self.eps_anchor = torch.empty((size * self.anchored, *shape), dtype=dtype)
        self.prompt = torch.zeros(size, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.x_t)

    @classmethod
    def sampling_of(cls, count: int, config: BankConfig) -> float:
        """Return how many steps of one trajectory are sampled, on average, for a draw of `count` triples."""
        return count / config.draws_per_sample

    def tensors(self) -> dict[str, Tensor]:
        """Return what was sampled."""
        return {k: getattr(self, k) for k in ("x_t", "eps_anchor", "eps_cond", "timesteps", "prompt")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `counters` returned."""
        vars(self).update(state)

    def counters(self) -> dict[str, int]:
        """Return how far the bank has come."""
        return {k: getattr(self, k) for k in ("draws", "oldest", "sampled")}

    def _next(self, count: int) -> Tensor:
        """Return the numbers (count,) of the prompts whose turn it is to be sampled."""
        return torch.arange(self.sampled, self.sampled + count) % self.prompts

    def _sample(self, rows: Sequence[int], last: int | None = None) -> None:
        """Fill some rows with new trajectories, of the prompts whose turn it is; stop after step `last`."""
        numbers = self._next(len(rows))
        self.prompt[list(rows)] = numbers
        noise = torch.randn((len(rows), *self.denoiser.latent_shape), generator=self.generator)
        self._fill(rows, numbers, noise, last)
        self.sampled += len(rows)

    def _fill(self, rows: Sequence[int], numbers: Tensor, noise: Tensor, last: int | None = None) -> None:
        """Sample trajectories of prompts by their numbers (B,) from noise (B, C, h, w) into B rows."""
        noise = noise.to(self.denoiser.device)
        anchor = None if self.anchor is None else self.anchor(numbers)
        count, scale = self.config.sampling_steps, self.config.guidance_scale
        steps = ddim_steps(self.denoiser, self.cond(numbers), self.uncond, noise, count, scale)
        for k, step in enumerate(steps):
            self.timesteps[k] = step.timestep
            t = torch.full((len(rows),), step.timestep, device=step.x_t.device)
            stores = [(self.x_t, step.x_t), (self.eps_cond, step.cond)]
            if self.anchored:
                instead = step.uncond if anchor is None else self.predict(step.x_t, t, anchor)
                stores.append((self.eps_anchor, instead))
            for store, value in stores:
                store[list(rows), k] = value.to(store.device, store.dtype)
            if k == last:
                break

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """Return the original model's prediction, without gradients."""
        return self.denoiser.noise_pred(x_t, t, conditioning)

    def refresh(self) -> None:
        """Replace the oldest trajectories once each sample has been drawn `draws_per_sample` times on average.

        A run calls this between iterations: within one the bank stays as it is.
        """
        count = min(batch_of(self.chunk, self.x_t), len(self))
        share = max(1, round(self.config.draws_per_sample * count * self.config.sampling_steps))
        while self.draws >= share:
            self.draws -= share
            self._sample([(self.oldest + i) % len(self) for i in range(count)])
            self.oldest = (self.oldest + count) % len(self)

    def draw(self, batch: int) -> BankSamples:
        """Return `batch` triples, trajectory and step drawn uniformly and independently."""
        self.draws += batch
        rows = self._rows()
        row = rows[torch.randint(len(rows), (batch,), generator=self.generator)]
        k = torch.randint(self.config.sampling_steps, (batch,), generator=self.generator)
        return self._triples(row, k)

    def _rows(self) -> Tensor:
        """Return the rows that a draw may be of."""
        if self.only is None:
            return torch.arange(len(self))
        return ((self.prompt >= self.only.start) & (self.prompt < self.only.stop)).nonzero().flatten()

    def _triples(self, row: Tensor, k: Tensor) -> BankSamples:
        device = self.denoiser.device
        x_t, cond = (s[row, k].to(device).float() for s in (self.x_t, self.eps_cond))
        anchor = self.eps_anchor[row, k].to(device).float() if self.anchored else x_t[:0]
        return BankSamples(x_t, self.timesteps[k].to(device), anchor, cond, self.prompt[row].to(device))


@dataclass(frozen=True)
class Banks:
    """Where a run's samples come from: the concept's trajectories and the retained prompts'."""

    concept: TrajectoryBank
    retain: TrajectoryBank | None

    def all(self) -> dict[str, TrajectoryBank]:
        """Return the banks by name."""
        return {"concept": self.concept} | ({} if self.retain is None else {"retain": self.retain})

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what was sampled, bank by bank."""
        return {name: bank.tensors() for name, bank in self.all().items()}

    def counters(self) -> dict[str, dict[str, int]]:
        """Return how far the banks have come."""
        return {name: bank.counters() for name, bank in self.all().items()}


def make_banks(
    model: TextToImage,
    concept: ConceptConfig,
    retain_prompts: Sequence[str],
    config: BankConfig,
    generator: torch.Generator,
    report: Report | None = None,
    bank: type[TrajectoryBank] = TrajectoryBank,
    state: Mapping[str, Mapping[str, Any]] | None = None,
) -> Banks:
    """Sample the original model along its own trajectories, for the concept and for what is retained.

    With a `state`, of `Banks.tensors` and `Banks.counters` together, the banks go on from there instead.
    """
    empty = model.encode([""])

    def make(name: str, prompts: Sequence[str], size: int, anchors: Sequence[str] | None) -> TrajectoryBank:
        def of(texts: Sequence[str]) -> Conditioning:
            return lambda numbers: model.encode([texts[i] for i in numbers.tolist()])

        anchor, own = of(anchors) if anchors and any(anchors) else None, state[name] if state else None
        kept = size if bank.keeps else 0
        return bank(
            model.denoiser,
            of(prompts),
            len(prompts),
            empty,
            kept,
            config,
            generator,
            report,
            anchor,
            own,
            anchors is not None,
        )

    with frozen(model.text_encoder, *model.denoiser.modules()):
        return Banks(
            make("concept", concept.prompts, config.trajectories, concept.anchors),
            make("retain", retain_prompts, config.retain_trajectories, None) if retain_prompts else None,
        )
