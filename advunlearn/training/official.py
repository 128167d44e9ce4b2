"""The published code's quirks (OPTML-Group/AdvUnlearn), for comparison with encoders that it trained.

Its prompts, samples and attack are reproduced from the description of what that code does, not copied. The trainer has
no branch for them: mode `official` and the setting `quirks` choose another source of samples, other attacked prompts
and another attack loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..attacks.pgd import Objective, OnStep, PGDResult, ProjectedStep
from ..config.adversary import AdversaryConfig
from ..config.quirks import Quirks, parse_quirks
from ..config.training import BankConfig, TrainConfig
from .bank import BankSamples, Report, TrajectoryBank, TrajectorySampler


def source_class(config: TrainConfig) -> type[TrajectoryBank | FreshSampler | PublishedSampler]:
    """Return the class of a run's source of samples."""
    if parse_quirks(config.mode, config.quirks).cleaner_latents:
        return PublishedSampler
    return FreshSampler if config.mode == "official" else TrajectoryBank


def cut_to_words(ids: Tensor, prompts: Sequence[str], eos: int) -> Tensor:
    """Return token ids (P, L) with as many content tokens as the prompt has words; the rest is `eos`."""
    cut = ids.clone()
    for row, prompt in zip(cut, prompts, strict=True):
        row[1 + len(prompt.split()) :] = eos
    return cut


class FreshSampler:
    """Samples a new trajectory for every sample, as published: the baseline for the bank. It stores nothing."""

    prefilled = False

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
        self.n_sampled = 0
        vars(self).update(state or {})

    @classmethod
    def steps_per_draw(cls, count: int, config: BankConfig) -> float:
        """All trajectories are sampled to the last step drawn: the largest of `count` uniform draws from 1 to S."""
        steps = config.sampling_steps
        return count * (steps - sum((k / steps) ** count for k in range(steps)))

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: no sample is stored."""
        return {}

    def counters(self) -> dict[str, int]:
        """Return the progress of sampling."""
        return {"n_sampled": self.n_sampled}

    def refresh(self) -> None:
        """Do nothing: every sample is new."""

    def draw(self, count: int, prompts: range | None = None) -> BankSamples:
        """Return `count` samples, each at a random step of a trajectory of its own."""
        k = torch.randint(self.config.sampling_steps, (count,), generator=self.generator)
        return self.sample_at(k, prompts)

    @torch.no_grad()
    def sample_at(self, k: Tensor, prompts: range | None = None) -> BankSamples:
        """Sample one trajectory for each step in `k` (B,); return its sample at that step. Prompts are in turn."""
        choice = prompts or range(self.sampler.num_prompts)
        count = len(k)
        prompt = choice.start + torch.arange(self.n_sampled, self.n_sampled + count) % len(choice)
        noise = self.sampler.starting_noise(count, self.generator)
        self.n_sampled += count
        device = self.sampler.denoiser.device
        x_t = torch.empty(noise.shape, device=device)
        cond = torch.empty_like(x_t)
        anchor = torch.empty_like(x_t[: count * self.sampler.anchored])
        t = torch.empty(count, dtype=torch.long, device=device)
        for i, step in enumerate(self.sampler.sample(prompt, noise)):
            rows = (k == i).nonzero().flatten().to(device)
            t[rows] = step.timestep
            x_t[rows] = step.x_t[rows].float()
            cond[rows] = step.cond[rows].float()
            if step.anchor is not None:
                anchor[rows] = step.anchor[rows].float()
            if i == int(k.max()):
                break
        return BankSamples(x_t, t, anchor, cond, prompt.to(device))


class PublishedSampler:
    """Samples whose latents are cleaner than the timestep says: noise level s, timestep in [s + 39, s + 58].

    That is for 50 sampling steps. In general, with r timesteps between two steps: [s + 2 r - 1, s + 3 r - 2].
    """

    prefilled = False

    def __init__(
        self,
        sampler: TrajectorySampler,
        size: int,
        generator: torch.Generator,
        report: Report | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.fresh = FreshSampler(sampler, size, generator, report, state)
        self.sampler = sampler
        self.generator = generator

    @classmethod
    def steps_per_draw(cls, count: int, config: BankConfig) -> float:
        """As `FreshSampler`, and one step more: the predictions are computed again."""
        return FreshSampler.steps_per_draw(count, config) + count

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: no sample is stored."""
        return self.fresh.tensors()

    def counters(self) -> dict[str, int]:
        """Return the progress of sampling."""
        return self.fresh.counters()

    def refresh(self) -> None:
        """Do nothing: every sample is new."""

    def sample_at(self, k: Tensor, prompts: range | None = None) -> BankSamples:
        """Sample one trajectory for each step in `k` (B,); return its sample at that step."""
        return self.fresh.sample_at(k, prompts)

    def draw(self, count: int, prompts: range | None = None) -> BankSamples:
        """Return `count` samples, with the original model's predictions at the timesteps that they state."""
        return published_draw(self, count, prompts)


class StepSource(Protocol):
    """A source that can sample at given steps of its trajectories."""

    sampler: TrajectorySampler
    generator: torch.Generator

    def sample_at(self, k: Tensor, prompts: range | None = None) -> BankSamples:
        """Return one sample for each step in `k` (B,)."""
        ...


def published_draw(source: StepSource, count: int, prompts: range | None = None) -> BankSamples:
    """Draw steps and timesteps as the published code does; the model's predictions are for these timesteps."""
    sampler = source.sampler
    total = len(sampler.denoiser.alphas_cumprod)
    steps = sampler.config.sampling_steps
    stride = total // steps
    k = torch.randint(min(2, steps - 1), steps, (count,), generator=source.generator)
    shift = 2 * stride - 1 + torch.randint(stride, (count,), generator=source.generator)
    samples = source.sample_at(k, prompts)
    t = (samples.t + shift.to(samples.t.device)).clamp(max=total - 1)
    numbers = samples.prompt.cpu()
    anchor = sampler.anchor(numbers) if sampler.anchor else sampler.uncond.expand(count, -1, -1)
    anchor_pred = sampler.predict(samples.x_t, t, anchor)
    cond_pred = sampler.predict(samples.x_t, t, sampler.cond(numbers))
    return BankSamples(samples.x_t, t, anchor_pred, cond_pred, samples.prompt)


class PublishedAttack:
    """The published attack loop; its arguments and result are those of `pgd`.

    With `result_before_last_step` the result is the point before the last step. With `gradient_accumulates` each
    gradient is added to what the step before left in `.grad`: after a signed step its sign, which freezes the
    direction.
    """

    def __init__(self, quirks: Quirks) -> None:
        self.quirks = quirks

    def __call__(
        self,
        objective: Objective,
        start: Tensor,
        config: AdversaryConfig,
        sigma: float,
        on_step: OnStep | None = None,
        centre: Tensor | None = None,
    ) -> PGDResult:
        """Minimise `objective` as the published code does."""
        x = start.detach().clone().requires_grad_(True)
        step = ProjectedStep(x, config, sigma, start if centre is None else centre)
        before_last = x.detach().clone()
        left: Tensor | None = None  # in .grad, by the step before
        losses: list[float] = []
        for i in range(config.steps):
            before_last = x.detach().clone()
            loss = objective(x)  # (N,)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            if self.quirks.gradient_accumulates and left is not None:
                gradient = gradient + left
            step(gradient)  # a signed step leaves the sign in the gradient
            left = gradient
            losses.append(loss.mean().item())
            if on_step is not None:
                on_step(i + 1, losses[-1])
        return PGDResult(before_last if self.quirks.result_before_last_step else x.detach(), losses)
