"""How much memory a training run takes, and how much work it is, before it starts.

One iteration of the real trainer is run on fake tensors, which have shapes but no values, and the storages that would
be alive are counted. Nothing is computed and nothing is guessed, so what changes in the trainer changes here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .config import AttackConfig, BankConfig, ConceptConfig, TrainConfig
from .errors import AdvUnlearnError
from .events import Progress
from .live import LiveMemory, fake_copy
from .models import TextToImage
from .sampling import batch_of
from .trainer import Trainer
from .trajectories import Banks, TrajectoryBank, make_banks

GIB = 2**30
# Not all of a device is for tensors: kernels want scratch memory, allocators leave gaps, a driver keeps its context.
USABLE = 0.9
PUBLISHED_RESOLUTION = 512  # of Stable Diffusion 1.x


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a run that decide what it takes."""

    concept: ConceptConfig = field(default_factory=ConceptConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    resolution: int  # pixels, 8 to a latent
    dtype: str = ""  # of the frozen parts; "" where it is not for us to choose

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution % 8:
            raise AdvUnlearnError(f"resolution is {self.resolution}; it must be a multiple of 8 pixels")

    def choices(self) -> dict[str, int | str]:
        """Return the settings that an advice may change, by the names of the node's inputs and the flags."""
        return {
            "resolution": self.resolution, "dtype": self.dtype, "attack_restarts": self.attack.restarts,
            "batch": self.train.batch, "retain_batch": self.train.retain_batch,
        }  # fmt: skip

    def changes(self, start: Plan) -> dict[str, int | str]:
        """Return those that differ from another plan's."""
        before = start.choices()
        return {k: v for k, v in self.choices().items() if v != before[k]}


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """Work in F: one forward pass of the UNet for one sample; a backward pass to its input counts as two."""

    bank: float  # to fill the banks, once
    attack: float  # per iteration after the warm-up
    train: float  # per iteration
    refresh: float  # per iteration after the warm-up, on average, to renew the banks; official: to sample anew
    total: float  # of the run


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes, in bytes on the device it computes on, unless said otherwise."""

    weights: int  # the model's own, frozen
    copy: int  # the copy that trains
    gradients: int
    optimiser: int  # Adam's two moments
    last_good: int  # the weights to return to when a loss is not finite
    phases: Mapping[str, int]  # the most in each phase: bank, attack, train
    bank: int  # the banks, in the CPU's memory
    device: str
    forwards: Forwards

    @property
    def steady(self) -> int:
        """What is held between iterations."""
        return self.weights + self.copy + self.gradients + self.optimiser + self.last_good

    @property
    def activations(self) -> dict[str, int]:
        """What each phase takes beside that."""
        return {name: peak - self.steady for name, peak in self.phases.items()}

    @property
    def peak(self) -> int:
        """The most on the device; on a CPU the banks lie there too."""
        return max(self.phases.values()) + (self.bank if self.device == "cpu" else 0)

    def fits(self, device_bytes: float) -> bool:
        """Return whether a run fits into that much memory; a tenth is left for what no tensor shows."""
        return self.peak <= USABLE * device_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self) | {"steady": self.steady, "peak": self.peak, "activations": self.activations}

    def text(self) -> str:
        """Return a table for people."""
        held = {k: getattr(self, k) for k in ("weights", "copy", "gradients", "optimiser", "last_good")}
        rows = [f"  {name.replace('_', ' '):<12}{size / GIB:8.2f} GiB" for name, size in held.items()]
        rows += [
            f"  {name:<12}{size / GIB:8.2f} GiB, {self.activations[name] / GIB:.2f} of it activations"
            for name, size in self.phases.items()
        ]
        f = self.forwards
        return "\n".join([
            f"needs {self.peak / GIB:.2f} GiB on {self.device}; banks in CPU memory: {self.bank / GIB:.2f} GiB",
            "held between iterations:", *rows[: len(held)], "at most while it does this:", *rows[len(held) :],
            f"UNet forwards: {f.bank:.0f} to fill the banks, then per iteration {f.attack:.0f} to attack, "
            f"{f.train:.0f} to train, {f.refresh:.1f} to renew the banks; {f.total:.0f} in all",
        ])  # fmt: skip


class ProbedBank(TrajectoryBank):
    """A bank that renews one step of one chunk, to see what that takes; what is in it does not matter."""

    live: LiveMemory
    then: str  # the phase that follows
    forwards: float  # F of one step of one trajectory

    def refresh(self) -> None:
        """Sample as a run does between two iterations."""
        self.live.enter("bank")
        counted: Any = self.denoiser
        rows, counted.forwards = min(batch_of(self.chunk, self.x_t), len(self)), 0
        self._sample(range(rows), last=0)
        self.forwards, counted.forwards = counted.forwards / rows, 0
        self.live.enter(self.then)


def fake_model(model: TextToImage, latent_size: int) -> TextToImage:
    """Return a model on fake tensors, for latents of that size, whose denoiser counts its F in `forwards`."""
    denoiser: Any = model.denoiser.with_modules(fake_copy)
    kind: Any = type(denoiser)

    class Counted(kind):
        forwards = 0

        def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
            output = super().noise_pred(x_t, t, conditioning)
            self.forwards += len(x_t) * (3 if output.requires_grad else 1)
            return output

        def trainable_copy(self) -> Any:
            return self.with_modules(lambda unet: fake_copy(unet, torch.float32))

    denoiser.__class__ = Counted
    denoiser.latent_shape = (denoiser.latent_shape[0], latent_size, latent_size)
    vae = fake_copy(model.vae) if isinstance(model.vae, nn.Module) else None
    return replace(model, denoiser=denoiser, text_encoder=fake_copy(model.text_encoder), vae=vae)


def estimate(
    model: TextToImage,
    plan: Plan,
    retain_prompts: Sequence[str],
    device: torch.device,
    seconds: float | None = None,
) -> Estimate:
    """Return what a run of `plan` would take.

    Args:
        model: the model, with weights or without (`skeleton`); it is only looked at.
        plan: the settings.
        retain_prompts: the retained prompts.
        device: where the run would compute; it need not be there. Attention is taken to be fused, as in diffusers.
        seconds: raise `live.TooLong` after so long; None for no limit.

    Raises AdvUnlearnError where torch has no fake tensors.
    """
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError as error:
        raise AdvUnlearnError(f"an estimate needs torch's FakeTensorMode ({error}); install a newer torch") from error
    retained = list(retain_prompts) if plan.train.retains else []
    with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory(seconds) as live:
        fake = fake_model(model, plan.resolution // 8)
        weights = live.live
        banks = make_banks(
            fake, plan.concept, retained, plan.bank, torch.Generator(),
            bank=ProbedBank, state={"concept": {}, "retain": {}},
        )  # fmt: skip
        bank = sum(_size(tensors.values()) for tensors in banks.tensors().values())
        trainer = _trainer(fake, plan, banks, retained)
        copied = live.live - weights - bank
        work = _one_iteration(trainer, live, device)
        moments = [v for state in trainer.state.adam.state.values() for v in state.values()]
        return Estimate(
            weights=weights, copy=copied, gradients=_size(p.grad for p in trainer.parameters),
            optimiser=_size(moments), last_good=_size(trainer.parameters),
            phases={name: live.peaks[name] - bank for name in ("bank", *work)},
            bank=bank, device=device.type, forwards=_forwards(plan, banks, work),
        )  # fmt: skip


def _size(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _trainer(fake: TextToImage, plan: Plan, banks: Banks, retained: Sequence[str]) -> Trainer:
    """Return a trainer of one iteration with one attack step: all others take the same memory."""
    config, attack = replace(plan.train, iterations=1, warmup=0), replace(plan.attack, steps=1)
    return Trainer(fake, plan.concept, attack, config, banks, retained, torch.Generator())


def _one_iteration(trainer: Trainer, live: LiveMemory, device: torch.device) -> dict[str, int]:
    """Run an iteration of a run that has its gradients and moments; return the F of its attack step and training."""
    counted: Any = trainer.denoiser
    first = "attack" if trainer.config.attacks else "train"
    for bank in trainer.banks.all().values():
        vars(bank).update(live=live, then=first)
    if device.type != "cpu":  # there Adam takes its steps over all weights at once
        trainer.state.adam.param_groups[0]["foreach"] = True
    for parameter in trainer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    trainer.state.adam.step()
    work: dict[str, int] = {}

    def on_progress(progress: Progress) -> None:
        work[progress.phase], counted.forwards = counted.forwards, 0
        live.enter("train")

    trainer.run(on_progress)
    return work


def _forwards(plan: Plan, banks: Banks, work: Mapping[str, int]) -> Forwards:
    """Return a run's work, from that of one step of everything."""
    config, attack, n = plan.train, plan.attack, plan.train.iterations
    steps = 1 if config.mode == "fast" else attack.steps
    attacked = n - config.warmup if config.attacks else 0
    per_step = {name: bank.forwards for name, bank in banks.all().items()}  # type: ignore[attr-defined]

    def drawing(name: str, count: int) -> float:
        """Return the F that `count` triples of one draw cost beside their use."""
        if name not in per_step:
            return 0.0
        if config.mode != "official":  # a triple is drawn `reuse` times before it is sampled anew
            return count * per_step[name] / plan.bank.reuse
        # All are sampled as far as the last step drawn, and the two predictions are made once more.
        return count * (per_step[name] * plan.bank.sampling_steps * count / (count + 1) + 2)

    redrawn = (1 + steps * (attack.redraw == "step")) if attacked else 0
    training = drawing("concept", config.batch) + drawing("retain", config.retain_batch)
    attacking = redrawn * drawing("concept", attack.restarts)
    kept = config.mode != "official"
    fill = kept * sum(len(bank) * plan.bank.sampling_steps * per_step[name] for name, bank in banks.all().items())
    find, train, refresh = steps * work.get("attack", 0), work["train"], training + attacking
    total = fill + n * (train + training) + attacked * (find + attacking)
    return Forwards(bank=fill, attack=find, train=train, refresh=refresh, total=total)
