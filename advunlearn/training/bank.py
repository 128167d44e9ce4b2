"""The trajectory bank: predictions of the frozen original model along its own sampling trajectories.

AdvUnlearn trains on (x_t, eps_o(x_t|a), eps_o(x_t|c)): x_t comes from sampling the original model, and the anchor a is
the empty prompt. The original model never changes, so neither does the distribution of these samples: they are sampled
once and drawn many times. A guided DDIM run computes both predictions in every step anyway, so T steps yield T samples
for 2 T forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config.training import BankConfig, RunConfig
from ..models.ddim import ddim_steps, scale_batch
from ..models.denoiser import Denoiser
from ..models.loading import TextToImage
from ..models.text_encoder import frozen

Report = Callable[[int, int], None]  # called with (trajectories sampled, trajectories to sample)
Conditioning = Callable[[Tensor], Tensor]  # prompt indices (B,) -> conditioning (B, L, D)


@dataclass(frozen=True)
class BankSamples:
    """B samples drawn from a bank, on the denoiser's device, in fp32."""

    x_t: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)
    anchor: Tensor  # (B, C, h, w) prediction for the anchor; of a bank without anchors it is empty
    cond: Tensor  # (B, C, h, w) prediction for the prompt
    prompt: Tensor  # (B,) index of each sample's prompt
    first: int = 0  # index of the first of these samples in the batch, which several processes may share
    weight: float = 1.0  # fraction of the batch that these samples are

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: slice) -> BankSamples:
        start, stop, _ = rows.indices(len(self))
        weight = self.weight * ((stop - start) / len(self))
        x_t, t, anchor, cond, prompt = (
            tensor[rows] for tensor in (self.x_t, self.t, self.anchor, self.cond, self.prompt)
        )
        return BankSamples(x_t, t, anchor, cond, prompt, self.first + start, weight)


@dataclass(frozen=True)
class TrajectoryStep:
    """One step of B trajectories, with the frozen model's predictions."""

    timestep: int
    x_t: Tensor  # (B, C, h, w)
    anchor: Tensor | None  # (B, C, h, w); None without anchors
    cond: Tensor  # (B, C, h, w)


@dataclass(frozen=True)
class TrajectorySampler:
    """Samples trajectories of P prompts from the frozen original model.

    The conditioning is computed for the sampled prompts only, since a retain set can be much larger than a bank.
    """

    denoiser: Denoiser
    cond: Conditioning  # of the prompts, under the original text encoder
    uncond: Tensor  # (1, L, D) conditioning of the empty prompt
    num_prompts: int
    config: BankConfig
    anchor: Conditioning | None = None  # of the prompts' anchors; None for the empty prompt, as published
    anchored: bool = True  # whether predictions for the anchors are needed; for retained prompts they are not

    def sample(self, prompts: Tensor, noise: Tensor) -> Iterator[TrajectoryStep]:
        """Yield the DDIM steps of prompts, given by their indices (B,), from starting noise (B, C, h, w)."""
        anchor = self.anchor(prompts) if self.anchor is not None and self.anchored else None
        steps, scale = self.config.sampling_steps, self.config.guidance_scale
        noise = noise.to(self.denoiser.device)
        for step in ddim_steps(self.denoiser, self.cond(prompts), self.uncond, noise, steps, scale):
            t = torch.full((len(prompts),), step.timestep, device=step.x_t.device)
            anchor_pred = None
            if self.anchored:
                anchor_pred = step.uncond if anchor is None else self.predict(step.x_t, t, anchor)
            yield TrajectoryStep(step.timestep, step.x_t, anchor_pred, step.cond)

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """Return the frozen model's prediction (B, C, h, w)."""
        return self.denoiser.noise_pred(x_t, t, conditioning)

    def starting_noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw noise (count, C, h, w), on the CPU."""
        return torch.randn((count, *self.denoiser.latent_shape), generator=generator)


class SampleSource(Protocol):
    """Where a run's samples come from. All random draws use `generator`, on the CPU."""

    prefilled: bool  # whether it is filled before the run
    generator: torch.Generator

    def draw(self, count: int, prompts: range | None = None, timestep: int | None = None) -> BankSamples:
        """Return `count` independent samples, of all prompts or of a range of them, at any timesteps or at one."""
        ...

    def draw_timestep(self) -> int:
        """Return a random timestep that samples can have."""
        ...

    def draw_prompts(self, count: int, prompts: range | None = None) -> Tensor:
        """Return the indices (count,) of prompts as `draw` returns them."""
        ...

    def refresh(self) -> None:
        """Replace samples that were drawn often enough; a run calls this between iterations."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the stored samples."""
        ...

    def counters(self) -> dict[str, int]:
        """Return the progress of sampling; with `tensors` and the generator's state, all that a resumed run needs."""
        ...


class TrajectoryBank:
    """N trajectories of S steps, spread over the prompts; the oldest are replaced once they were drawn often enough.

    Args:
        sampler: samples the trajectories.
        size: number of trajectories N.
        generator: source of the starting noise and of the draws.
        report: called while the bank is filled.
        state: the result of `tensors` and `counters` together; the bank continues from it and samples nothing.
    """

    chunk = 32  # trajectories sampled in one batch, if their latents are 8 x 8
    prefilled = True

    def __init__(
        self,
        sampler: TrajectorySampler,
        size: int,
        generator: torch.Generator,
        report: Report | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.sampler = sampler
        self.config = sampler.config
        self.generator = generator
        self.draws = 0  # since the last replacement
        self.next_to_replace = 0
        self.n_sampled = 0
        self.timesteps = torch.empty(self.config.sampling_steps, dtype=torch.long)
        self.prompt = torch.zeros(size, dtype=torch.long)
        self.allocate(size)
        if state is not None:
            self.restore(state)
            return
        self._sample_all(size, report or (lambda done, total: None))

    def _sample_all(self, size: int, report: Report) -> None:
        """Fill all rows; report before the first trajectories too, since a batch of them may take minutes."""
        step = scale_batch(self.chunk, self.x_t)
        report(0, size)
        for start in range(0, size, step):
            self._sample(range(start, min(start + step, size)))
            report(min(start + step, size), size)

    def allocate(self, size: int) -> None:
        """Allocate the storage of `size` trajectories."""
        shape = (self.config.sampling_steps, *self.sampler.denoiser.latent_shape)
        dtype = getattr(torch, self.config.dtype)
        self.x_t = torch.empty((size, *shape), dtype=dtype)
        self.eps_cond = torch.empty((size, *shape), dtype=dtype)
        self.eps_anchor = torch.empty((size * self.sampler.anchored, *shape), dtype=dtype)

    def __len__(self) -> int:
        return len(self.prompt)

    @classmethod
    def steps_per_draw(cls, count: int, config: BankConfig, anchored: bool = True) -> float:
        """Return the mean number of trajectory steps, of 2 F each, that a draw of `count` samples costs."""
        return count / config.draws_per_sample

    def tensors(self) -> dict[str, Tensor]:
        """Return the stored samples."""
        return {k: getattr(self, k) for k in ("x_t", "eps_anchor", "eps_cond", "timesteps", "prompt")}

    def counters(self) -> dict[str, int]:
        """Return the progress of sampling."""
        return {k: getattr(self, k) for k in ("draws", "next_to_replace", "n_sampled")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of `tensors` and `counters`."""
        vars(self).update(state)

    def _sample(self, rows: Sequence[int], last: int | None = None) -> None:
        """Fill rows with new trajectories, of the prompts in turn; stop after step `last`."""
        prompts = torch.arange(self.n_sampled, self.n_sampled + len(rows)) % self.sampler.num_prompts
        self.prompt[list(rows)] = prompts
        self._fill(rows, prompts, self.sampler.starting_noise(len(rows), self.generator), last)
        self.n_sampled += len(rows)

    def _fill(self, rows: Sequence[int], prompts: Tensor, noise: Tensor, last: int | None = None) -> None:
        """Store trajectories of prompts (B,) from noise (B, C, h, w) in B rows."""
        for k, step in enumerate(self.sampler.sample(prompts, noise)):
            self.timesteps[k] = step.timestep
            stores = [(self.x_t, step.x_t), (self.eps_cond, step.cond)]
            if step.anchor is not None:
                stores.append((self.eps_anchor, step.anchor))
            for store, value in stores:
                store[list(rows), k] = value.to(store.device, store.dtype)
            if k == last:
                break

    def refresh(self) -> None:
        """Replace the oldest trajectories once each sample has been drawn `draws_per_sample` times on average."""
        count = min(scale_batch(self.chunk, self.x_t), len(self))
        budget = max(1, round(self.config.draws_per_sample * count * self.config.sampling_steps))
        while self.draws >= budget:
            self.draws -= budget
            self._sample([(self.next_to_replace + i) % len(self) for i in range(count)])
            self.next_to_replace = (self.next_to_replace + count) % len(self)

    def draw(self, count: int, prompts: range | None = None, timestep: int | None = None) -> BankSamples:
        """Return `count` samples; trajectory and step are drawn uniformly and independently."""
        self.draws += count
        rows = self._rows_of(prompts)
        row = rows[torch.randint(len(rows), (count,), generator=self.generator)]
        if timestep is None:
            k = torch.randint(self.config.sampling_steps, (count,), generator=self.generator)
        else:
            k = self._step_of(timestep).expand(count)
        return self._samples_at(row, k)

    def draw_timestep(self) -> int:
        """Return the timestep of a random step."""
        k = torch.randint(self.config.sampling_steps, (1,), generator=self.generator)
        return int(self.timesteps[k])

    def draw_prompts(self, count: int, prompts: range | None = None) -> Tensor:
        """Return the prompts of a draw, which counts as one."""
        return self.draw(count, prompts).prompt

    def _step_of(self, timestep: int) -> Tensor:
        """Return the index (1,) of the step with a timestep."""
        return (self.timesteps == timestep).nonzero()[0]

    def _rows_of(self, prompts: range | None) -> Tensor:
        """Return the rows whose prompt is in a range."""
        if prompts is None:
            return torch.arange(len(self))
        return ((self.prompt >= prompts.start) & (self.prompt < prompts.stop)).nonzero().flatten()

    def _samples_at(self, row: Tensor, k: Tensor) -> BankSamples:
        """Return the samples at rows (B,) and steps (B,)."""
        device = self.sampler.denoiser.device
        x_t, cond = (store[row, k].to(device).float() for store in (self.x_t, self.eps_cond))
        anchor = self.eps_anchor[row, k].to(device).float() if self.sampler.anchored else x_t[:0]
        return BankSamples(x_t, self.timesteps[k].to(device), anchor, cond, self.prompt[row].to(device))


MakeSource = Callable[..., SampleSource]  # (sampler, size, generator, report, state), as `TrajectoryBank`


@dataclass(frozen=True)
class Banks:
    """The two sources of a run's samples: trajectories of the concept's prompts and of the retained ones."""

    concept: SampleSource
    retain: SampleSource | None

    def by_name(self) -> dict[str, SampleSource]:
        """Return the banks by name."""
        return {"concept": self.concept} | ({} if self.retain is None else {"retain": self.retain})

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the stored samples of each bank."""
        return {name: bank.tensors() for name, bank in self.by_name().items()}

    def counters(self) -> dict[str, dict[str, int]]:
        """Return the progress of each bank."""
        return {name: bank.counters() for name, bank in self.by_name().items()}


def make_banks(
    model: TextToImage,
    run: RunConfig,
    retain_prompts: Sequence[str],
    generator: torch.Generator,
    report: Report | None = None,
    make: MakeSource = TrajectoryBank,
    state: Mapping[str, Mapping[str, Any]] | None = None,
) -> Banks:
    """Sample the original model's trajectories, for the concept and for the retained prompts.

    Args:
        model: the original model; it is frozen meanwhile.
        run: the concept and the bank's settings.
        retain_prompts: the retained prompts; without any there is no bank for them.
        generator: source of all random draws.
        report: called while the banks are filled.
        make: makes a source of samples.
        state: by bank, the result of `Banks.tensors` and `Banks.counters` together, to continue from.
    """
    uncond = model.encode([""])

    def encode_rows(texts: Sequence[str]) -> Conditioning:
        return lambda rows: model.encode([texts[i] for i in rows.tolist()])

    def make_source(name: str, prompts: Sequence[str], size: int, anchors: Sequence[str] | None) -> SampleSource:
        sampler = TrajectorySampler(
            model.denoiser,
            encode_rows(prompts),
            uncond,
            len(prompts),
            run.bank,
            anchor=encode_rows(anchors) if anchors and any(anchors) else None,
            anchored=anchors is not None,
        )
        return make(sampler, size, generator, report, state[name] if state else None)

    concept = run.concept
    with frozen(model.text_encoder, *model.denoiser.modules()):
        return Banks(
            make_source("concept", concept.prompts, run.bank.trajectories, concept.anchors),
            make_source("retain", retain_prompts, run.bank.retain_trajectories, None) if retain_prompts else None,
        )
