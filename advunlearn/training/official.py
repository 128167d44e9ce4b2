"""The published code's quirks (OPTML-Group/AdvUnlearn), for comparison with encoders that it trained.

Its prompts, samples and attack are reproduced from the description of what that code does, not copied. Mode `official`
and the setting `quirks` choose another source of samples, other attacked prompts, another attack loop, and one timestep
for a whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..attacks.pgd import Objective, OnStep, PGDResult, ProjectedStep
from ..config.adversary import AdversaryConfig
from ..config.quirks import Quirks, parse_quirks
from ..config.training import BankConfig, TrainConfig
from ..models.ddim import ddim_steps, ddim_timesteps
from ..models.loading import TextToImage
from .bank import BankSamples, Report, TrajectoryBank, TrajectorySampler, TrajectoryStep


def source_class(config: TrainConfig) -> type[TrajectoryBank | FreshSampler]:
    """Return the class of a run's source of samples."""
    if parse_quirks(config.mode, config.quirks).cleaner_latents:
        return PublishedSampler
    return FreshSampler if config.mode == "official" else TrajectoryBank


def cut_to_words(ids: Tensor, prompts: Sequence[str], config: AdversaryConfig, eos: int) -> tuple[Tensor, Tensor]:
    """Return token ids (P, L) as the published attack uses them, and the prompts' lengths in words (P,).

    It takes a prompt of n words for one of n tokens and drops the k tokens behind them, k being the attack's. What
    follows those stays. In position add k is n, and the dropped tokens are replaced by the one that follows.
    """
    sizes = [len(prompt.split()) for prompt in prompts]
    cut = torch.full_like(ids, eos)
    for row, source, n in zip(cut, ids, sizes, strict=True):
        k = n if config.position == "add" else config.tokens
        following = source[1 + n + k :]
        if config.position == "add":
            next_token = following[:1] if len(following) else source[-1:]
            following = torch.cat([next_token.expand(k), following])
        kept = torch.cat([source[: 1 + n], following])[: len(row)]
        row[: len(kept)] = kept
    return cut, torch.tensor(sizes, device=ids.device)


def fit_long_prompts(model: TextToImage, config: TrainConfig, retain_prompts: Sequence[str]) -> TextToImage:
    """Return the model for retained prompts of any length, see `TextToImage.fit_prompts`; the published code cuts."""
    return model if config.mode == "official" else model.fit_prompts(retain_prompts)


class FreshSampler:
    """Samples a new trajectory for every sample: the baseline for the bank. It stores nothing."""

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
    def steps_per_draw(cls, count: int, config: BankConfig, anchored: bool = True) -> float:
        """Return the mean number of trajectory steps of a draw: each sample is at one of S steps, uniformly."""
        return count * (config.sampling_steps + 1) / 2

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: no sample is stored."""
        return {}

    def counters(self) -> dict[str, int]:
        """Return the progress of sampling."""
        return {"n_sampled": self.n_sampled}

    def refresh(self) -> None:
        """Do nothing: every sample is new."""

    def draw_timestep(self) -> int:
        """Return a random timestep."""
        return int(self.draw_timesteps(1))

    def draw_timesteps(self, count: int) -> Tensor:
        """Return the timesteps (count,) of random steps."""
        k = torch.randint(self.config.sampling_steps, (count,), generator=self.generator)
        return ddim_timesteps(self.config.sampling_steps, len(self.sampler.denoiser.alphas_cumprod))[k]

    def draw_prompts(self, count: int, prompts: range | None = None) -> Tensor:
        """Return the prompts that the next draw has; they take turns."""
        choice = prompts or range(self.sampler.num_prompts)
        return choice.start + torch.arange(self.n_sampled, self.n_sampled + count) % len(choice)

    @torch.no_grad()
    def draw(self, count: int, prompts: range | None = None, timestep: int | None = None) -> BankSamples:
        """Return `count` samples, each of a trajectory of its own; those at the same timestep are sampled together."""
        t = self.draw_timesteps(count) if timestep is None else torch.full((count,), timestep)
        prompt = self.draw_prompts(count, prompts)
        noise = self.sampler.starting_noise(count, self.generator)
        self.n_sampled += count
        device = self.sampler.denoiser.device
        x_t = torch.empty(noise.shape, device=device)
        cond = torch.empty_like(x_t)
        anchor = torch.empty_like(x_t[: count * self.sampler.anchored])
        for value in t.unique().tolist():
            rows = (t == value).nonzero().flatten()
            step = self.sample_at(prompt[rows], noise[rows], value)
            rows = rows.to(device)
            x_t[rows] = step.x_t.float()
            cond[rows] = step.cond.float()
            if step.anchor is not None:
                anchor[rows] = step.anchor.float()
        return BankSamples(x_t, t.to(device), anchor, cond, prompt.to(device))

    def sample_at(self, prompts: Tensor, noise: Tensor, timestep: int) -> TrajectoryStep:
        """Return the step at a timestep of new trajectories of prompts (B,) from noise (B, C, h, w)."""
        return next(step for step in self.sampler.sample(prompts, noise) if step.timestep == timestep)


class PublishedSampler(FreshSampler):
    """Samples whose latents are cleaner than their timestep says, as in the published code.

    Of S = 50 intervals of r = 20 timesteps it draws one, k, and a timestep in it. Its DDIM schedule lacks the first
    step, so that noise is denoised from timestep 961, and it stops after S - max(k, 1) steps. For k >= 2 the latents
    then have the noise level of timestep 20 k - 39, for k = 0 and 1 that of timestep 0. The predictions are computed
    again, for the drawn timestep.
    """

    @classmethod
    def steps_per_draw(cls, count: int, config: BankConfig, anchored: bool = True) -> float:
        """Return the mean of S - max(k, 1), and the predictions: one or, with an anchor, two, which cost a step."""
        steps = config.sampling_steps
        return count * ((steps - 1) * (steps + 2) / (2 * steps) + (1 if anchored else 0.5))

    @property
    def interval(self) -> int:
        """Number of timesteps r of an interval."""
        return len(self.sampler.denoiser.alphas_cumprod) // self.config.sampling_steps

    def draw_timesteps(self, count: int) -> Tensor:
        """Return timesteps (count,), each anywhere in a random interval."""
        k = torch.randint(self.config.sampling_steps, (count,), generator=self.generator)
        return k * self.interval + torch.randint(self.interval, (count,), generator=self.generator)

    def sample_at(self, prompts: Tensor, noise: Tensor, timestep: int) -> TrajectoryStep:
        """Return latents of new trajectories, and the original model's predictions at the timestep that is told."""
        sampler, cond = self.sampler, self.sampler.cond(prompts)
        x_t = self.sample_latents(cond, noise.to(sampler.denoiser.device), timestep // self.interval)
        t = torch.full((len(x_t),), timestep, device=x_t.device)
        anchor_pred = None
        if sampler.anchored:
            anchor = sampler.anchor(prompts) if sampler.anchor else sampler.uncond.expand(len(x_t), -1, -1)
            anchor_pred = sampler.predict(x_t, t, anchor)
        return TrajectoryStep(timestep, x_t, anchor_pred, sampler.predict(x_t, t, cond))

    def sample_latents(self, cond: Tensor, noise: Tensor, k: int) -> Tensor:
        """Return the latents (B, C, h, w) of interval k."""
        steps, scale = self.config.sampling_steps, self.config.guidance_scale
        trajectory = ddim_steps(self.sampler.denoiser, cond, self.sampler.uncond, noise, steps, scale, first=1)
        x_t = noise
        for step in islice(trajectory, steps - max(k, 1)):
            x_t = step.x_next
        return x_t


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
