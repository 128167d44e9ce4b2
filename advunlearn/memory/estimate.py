"""Estimate the memory and the work of a training run before it starts.

One iteration of the real trainer is run on fake tensors, which have shapes but no values, and the storages that would
be alive are counted. Nothing is computed and nothing is modelled, so a change of the trainer changes the estimate.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config.training import RunConfig
from ..errors import AdvUnlearnError
from ..models.counting import BACKWARD
from ..models.ddim import scale_batch
from ..models.loading import TextToImage
from ..training.bank import Banks, BankSamples, SampleSource, TrajectoryBank, make_banks
from ..training.events import Progress
from ..training.official import fit_long_prompts, source_class
from ..training.offload import offloaded_modules
from ..training.schedule import Schedule
from ..training.trainer import Trainer
from .fake_tensors import Deadline, LiveMemory, fake_copy
from .passes import PassDenoiser, PassRecorder
from .plan import Estimate, Forwards, Plan

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode


@dataclass(frozen=True)
class NotedDraw:
    """A draw of samples, or of their prompts only, in a phase of a run."""

    phase: str
    count: int
    prompts_only: bool = False


class ProbedBank(TrajectoryBank):
    """A bank that samples one step of one chunk in `refresh`, to measure its cost; its values do not matter."""

    live: LiveMemory
    next_phase: str
    forwards_per_step: int  # F of one step of one trajectory
    noted: list[NotedDraw]

    def _rows_of(self, prompts: range | None) -> Tensor:
        """Return all rows: the cost is the same for any prompt, and fake tensors have no values to compare."""
        return torch.arange(len(self))

    def draw(self, count: int, prompts: range | None = None, timestep: int | None = None) -> BankSamples:
        """Draw as a run does, and note it."""
        self.noted.append(NotedDraw(self.live.phase, count))
        return super().draw(count, prompts, timestep)

    def draw_prompts(self, count: int, prompts: range | None = None) -> Tensor:
        """Note the draw; all prompts are the first."""
        self.noted.append(NotedDraw(self.live.phase, count, prompts_only=True))
        return torch.zeros(count, dtype=torch.long)

    def draw_timestep(self) -> int:
        """Return no timestep: fake tensors have none."""
        return 0

    def _step_of(self, timestep: int) -> Tensor:
        """Return the first step: the cost is the same at any."""
        return torch.zeros(1, dtype=torch.long)

    def refresh(self) -> None:
        """Sample as a run does between two iterations."""
        self.live.enter("bank")
        counted: Any = self.sampler.denoiser
        rows = min(scale_batch(self.chunk, self.x_t), len(self))
        counted.forwards = 0
        self._sample(range(rows), last=0)
        self.forwards_per_step = counted.forwards // rows
        counted.forwards = 0
        self.live.enter(self.next_phase)


def fake_model(model: TextToImage, latent_size: int, cost: int) -> TextToImage:
    """Return a model on fake tensors, for latents of that size, whose denoiser counts its F in `forwards`.

    `cost` is the F of a prediction with a backward pass.
    """
    denoiser: Any = model.denoiser.with_modules(fake_copy)
    kind: Any = type(denoiser)

    class Counted(kind):
        forwards = 0

        def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
            output = super().noise_pred(x_t, t, conditioning)
            self.forwards += len(x_t) * (cost if output.requires_grad else 1)
            return output

        def trainable_copy(self) -> Any:
            return self.with_modules(lambda unet: fake_copy(unet, torch.float32))

    denoiser.__class__ = Counted
    denoiser.latent_shape = (denoiser.latent_shape[0], latent_size, latent_size)
    return replace(model, denoiser=denoiser, text_encoder=fake_copy(model.text_encoder))


class Estimator:
    """Estimates runs with one model. What several estimates have in common is measured once.

    Args:
        model: the model, with weights or without (`meta_model.skeleton`); it is not changed.
        retain_prompts: the retained prompts.
        device: where the run would compute; it need not exist. Attention is assumed to be fused, as in diffusers.
        linear: whether the memory of a denoiser's pass grows linearly with its samples. If not, as where a host divides
            attention by what is free, it is measured for each number of samples.

    """

    def __init__(
        self, model: TextToImage, retain_prompts: Sequence[str], device: torch.device, linear: bool = True
    ) -> None:
        self.model = model
        self.retain_prompts = list(retain_prompts)
        self.device = device
        self.linear = linear
        self.estimates: dict[Plan, Estimate] = {}  # without offload
        self.pass_denoiser = functools.cache(self._pass_denoiser)

    @functools.cached_property
    def mode(self) -> FakeTensorMode:
        """The mode in which tensors have no values, one for all estimates."""
        try:
            from .shape_mode import shape_mode
        except ImportError as error:
            raise AdvUnlearnError(
                f"an estimate needs torch's FakeTensorMode ({error}); install a newer torch"
            ) from error
        return shape_mode()

    def __call__(self, plan: Plan, seconds: float | None = None) -> Estimate:
        """Return the memory and the work of a run.

        Args:
            plan: the settings.
            seconds: time limit; None for no limit.

        Raises AdvUnlearnError if torch has no fake tensors, `fake_tensors.TooLong` after the time limit.
        """
        kept = replace(plan, run=plan.run.replace(train={"offload": False}))
        if kept not in self.estimates:
            with self.mode, LiveMemory() as live, Deadline(seconds):
                self.estimates[kept] = self._estimate(kept, live)
        result = self.estimates[kept]
        return result.with_offload() if plan.run.train.offload else result

    def _estimate(self, plan: Plan, live: LiveMemory) -> Estimate:
        run = shortened(plan.run)
        retained = self.retain_prompts if run.train.retains else []
        fake = fit_long_prompts(self._fake_model(run, plan.resolution // 8, live), run.train, retained)
        weights = live.live
        banks = make_banks(fake, run, retained, torch.Generator(), make=ProbedBank, state={"concept": {}, "retain": {}})
        bank = _count_bytes(tensor for tensors in banks.tensors().values() for tensor in tensors.values())
        trainer = Trainer(fake, run, banks, retained, torch.Generator())
        copied = live.live - weights - bank
        work = _run_iteration(trainer, live, self.device)
        moments = [value for state in trainer.state.adam.state.values() for value in state.values()]
        return Estimate(
            weights=weights,
            copy=copied,
            gradients=_count_bytes(p.grad for p in trainer.parameters),
            optimiser=_count_bytes(moments),
            last_good=_count_bytes(trainer.parameters),
            movable=sum(map(_count_module, offloaded_modules(self.model, run.train))),
            phases={name: live.peaks[name] - bank for name in ("bank", *work)},
            bank=bank,
            device=self.device.type,
            forwards=_sum_forwards(plan, banks, work),
        )

    def _fake_model(self, run: RunConfig, latent_size: int, live: LiveMemory) -> TextToImage:
        """Return the model on fake tensors. If the UNet trains, its passes are run, otherwise only their memory counts.

        The autoencoder is not used, only counted.
        """
        vae = self.model.vae
        live.change(_count_module(vae) if isinstance(vae, nn.Module) else 0)
        if run.train.unet_method:
            return fake_model(self.model, latent_size, 1 + BACKWARD + run.train.checkpointing)
        with live.recorded_by(PassRecorder(1, linear=False)):  # the weights are counted below, also the next time
            denoiser, size = self.pass_denoiser(latent_size, run.train.checkpointing)
        denoiser.live, denoiser.forwards = live, 0
        live.change(size)
        return replace(self.model, denoiser=denoiser, text_encoder=fake_copy(self.model.text_encoder))

    def _pass_denoiser(self, latent_size: int, checkpointing: bool) -> tuple[PassDenoiser, int]:
        """Return a denoiser that only takes the memory of passes, and the bytes of its weights."""
        with LiveMemory() as weights:
            denoiser = self.model.denoiser.with_modules(fake_copy)
        shape = (denoiser.latent_shape[0], latent_size, latent_size)
        return PassDenoiser(denoiser, weights, shape, checkpointing, self.linear), weights.live


def estimate(
    model: TextToImage,
    plan: Plan,
    retain_prompts: Sequence[str],
    device: torch.device,
    seconds: float | None = None,
) -> Estimate:
    """Return the memory and the work of one run; see `Estimator`, which is quicker for several plans."""
    return Estimator(model, retain_prompts, device)(plan, seconds)


def shortened(run: RunConfig) -> RunConfig:
    """Return a run of one iteration that takes as much memory: one step of each kind, one micro-batch of each term."""
    train = {"iterations": 1, "warmup": 0, "retain_steps": 1}
    if run.train.micro_batch and run.train.micro_batch < run.samples_in_one_pass:
        train["batch"] = min(run.train.batch, run.train.micro_batch)
        train["retain_batch"] = min(run.train.retain_batch, run.train.micro_batch)
    return run.replace(attack={"steps": 1, "inversion_steps": 1}, train=train)


def _count_bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _count_module(module: nn.Module) -> int:
    """Return the bytes of a module's weights and buffers."""
    return _count_bytes((*module.parameters(), *module.buffers()))


def _run_iteration(trainer: Trainer, live: LiveMemory, device: torch.device) -> dict[str, int]:
    """Run one iteration, with gradients and moments in place; return the F of an attack step and of training."""
    counted: Any = trainer.denoiser
    for bank in trainer.banks.by_name().values():
        vars(bank).update(live=live, noted=[], next_phase="attack" if trainer.config.attacks else "train")
    if device.type != "cpu":  # Adam then updates all weights at once
        trainer.state.adam.param_groups[0]["foreach"] = True
    for parameter in trainer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    trainer.state.adam.step()
    work: dict[str, int] = {}

    def on_progress(progress: Progress) -> None:
        phase = "inversion" if progress.attack_step > 1 else progress.phase
        work[phase] = counted.forwards
        counted.forwards = 0
        live.enter("inversion" if phase == "attack" and trainer.run_config.attack.inversion_tokens else "train")

    trainer.run(on_progress)
    return work


def _sum_forwards(plan: Plan, banks: Banks, work: dict[str, int]) -> Forwards:
    """Return a run's work from the counted work of one step of each kind."""
    train, attack = plan.run.train, plan.run.attack.in_mode(plan.run.train.mode)
    fill = 0
    if source_class(train).prefilled:
        steps = plan.run.bank.sampling_steps
        fill = sum(len(bank) * steps * bank.forwards_per_step for bank in banks.by_name().values())  # type: ignore
    # Of a training step only one micro-batch was counted: every sample costs the same.
    counted = shortened(plan.run).train
    retain_steps = train.retain_steps if train.retain_mode == "step" else 1
    samples = train.batch + train.retains * retain_steps * train.retain_batch
    iteration = work["train"] * samples // (counted.batch + train.retains * counted.retain_batch)
    one_attack = attack.steps * work.get("attack", 0) + attack.inversion_steps * work.get("inversion", 0)
    attacks = Schedule.from_config(plan.run).num_attacks
    sampling = round(_sampling_forwards(plan, banks, attacks))
    total = fill + train.iterations * iteration + attacks * one_attack + sampling
    return Forwards(bank=fill, attack=one_attack, train=iteration, sampling=sampling, total=total)


def _sampling_forwards(plan: Plan, banks: Banks, attacks: int) -> float:
    """Return the mean F of the samples that are drawn or renewed during a run."""
    train, attack = plan.run.train, plan.run.attack.in_mode(plan.run.train.mode)
    kind = source_class(train)

    def cost(bank: SampleSource, count: int) -> float:
        probed: Any = bank
        return kind.steps_per_draw(count, plan.run.bank, probed.sampler.anchored) * probed.forwards_per_step

    iteration = cost(banks.concept, train.batch)
    if banks.retain is not None:
        retain_steps = train.retain_steps if train.retain_mode == "step" else 1
        iteration += retain_steps * cost(banks.retain, train.retain_batch)
    one_attack = 0.0
    concept: Any = banks.concept
    for phase, steps in (("attack", attack.steps), ("inversion", attack.inversion_steps)):
        # The first draw is for the starting points; there is another one if every step draws.
        for i, draw in enumerate(draw for draw in concept.noted if draw.phase == phase):
            if kind.prefilled or not draw.prompts_only:
                one_attack += cost(concept, draw.count) * (steps if i else 1)
    return train.iterations * iteration + attacks * one_attack
