"""How much memory a training run takes, and how much work it is, before it starts.

One iteration of the real trainer is run on fake tensors, which have shapes but no values, and the storages that would
be alive are counted. Nothing is computed and nothing is guessed, so what changes in the trainer changes here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config.training import RunConfig
from ..errors import AdvUnlearnError
from ..models.counting import BACKWARD
from ..models.ddim import scale_batch
from ..models.loading import TextToImage
from ..training.bank import Banks, TrajectoryBank, make_banks
from ..training.events import Progress
from ..training.official import source_class
from ..training.trainer import Trainer
from .fake_tensors import Deadline, LiveMemory, fake_copy
from .plan import Estimate, Forwards, Plan


class ProbedBank(TrajectoryBank):
    """A bank that renews one step of one chunk, to see what that takes; what is in it does not matter."""

    live: LiveMemory
    then: str  # the phase that follows
    forwards: float  # F of one step of one trajectory

    def _rows_of(self, prompts: range | None) -> Tensor:
        """Return all rows: whose turn it is changes nothing here, and fake tensors cannot tell."""
        return torch.arange(len(self))

    def refresh(self) -> None:
        """Sample as a run does between two iterations."""
        self.live.enter("bank")
        counted: Any = self.sampler.denoiser
        rows, counted.forwards = min(scale_batch(self.chunk, self.x_t), len(self)), 0
        self._sample(range(rows), last=0)
        self.forwards, counted.forwards = counted.forwards / rows, 0
        self.live.enter(self.then)


def fake_model(model: TextToImage, latent_size: int, cost: int) -> TextToImage:
    """Return a model on fake tensors, for latents of that size, whose denoiser counts its F in `forwards`.

    `cost` is the F of a prediction that has a backward pass.
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
    with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as live, Deadline(seconds):
        fake = fake_model(model, plan.resolution // 8, with_gradient(plan))
        weights = live.live
        run = RunConfig(concept=plan.concept, attack=plan.attack, train=plan.train, bank=plan.bank)
        banks = make_banks(fake, run, retained, torch.Generator(), make=ProbedBank, state={"concept": {}, "retain": {}})
        bank = sum(_size(tensors.values()) for tensors in banks.tensors().values())
        trainer = _trainer(fake, plan, banks, retained)
        copied = live.live - weights - bank
        work = _one_iteration(trainer, live, device)
        moments = [v for state in trainer.state.adam.state.values() for v in state.values()]
        return Estimate(
            weights=weights,
            copy=copied,
            gradients=_size(p.grad for p in trainer.parameters),
            optimiser=_size(moments),
            last_good=_size(trainer.parameters),
            phases={name: live.peaks[name] - bank for name in ("bank", *work)},
            bank=bank,
            device=device.type,
            forwards=_forwards(plan, banks, work),
        )


def with_gradient(plan: Plan) -> int:
    """Return the F of a prediction that has a backward pass; checkpointing computes the forward pass again in it."""
    return 1 + BACKWARD + plan.train.checkpointing


def _size(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _trainer(fake: TextToImage, plan: Plan, banks: Banks, retained: Sequence[str]) -> Trainer:
    """Return a trainer of one iteration with one attack step and one retain step: all others take the same memory."""
    config = replace(plan.train, iterations=1, warmup=0, retain_steps=1)
    attack = replace(plan.attack, steps=1, inversion_steps=1)
    run = RunConfig(concept=plan.concept, attack=attack, train=config, bank=plan.bank)
    return Trainer(fake, run, banks, retained, torch.Generator())


def _one_iteration(trainer: Trainer, live: LiveMemory, device: torch.device) -> dict[str, int]:
    """Run an iteration of a run that has its gradients and moments; return the F of its attack step and training."""
    counted: Any = trainer.denoiser
    first = "attack" if trainer.config.attacks else "train"
    for bank in trainer.banks.by_name().values():
        vars(bank).update(live=live, then=first)
    if device.type != "cpu":  # there Adam takes its steps over all weights at once
        trainer.state.adam.param_groups[0]["foreach"] = True
    for parameter in trainer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    trainer.state.adam.step()
    work: dict[str, int] = {}

    def on_progress(progress: Progress) -> None:
        phase = "words" if progress.attack_step > 1 else progress.phase
        work[phase], counted.forwards = counted.forwards, 0
        live.enter("words" if phase == "attack" and trainer.run_config.attack.inversion_tokens else "train")

    trainer.run(on_progress)
    return work


def _forwards(plan: Plan, banks: Banks, work: Mapping[str, int]) -> Forwards:
    """Return a run's work, from that of one step of everything."""
    config, attack, n = plan.train, plan.attack, plan.train.iterations
    steps, words = attack.in_mode(config.mode).steps, attack.inversion_tokens
    attacked = n - config.warmup if config.attacks else 0
    renewed = -(-attacked // attack.attack_interval)  # iterations that attack anew
    share = renewed / attacked if attacked else 0
    per_step = {name: bank.forwards for name, bank in banks.by_name().items()}  # type: ignore[attr-defined]
    kind = source_class(config)

    def drawing(name: str, count: int) -> float:
        """Return the F that a draw of `count` triples costs beside their use."""
        return kind.steps_per_draw(count, plan.bank) * per_step.get(name, 0)

    redrawn = (1 + steps * (attack.resample == "step")) if attacked else 0
    retained = drawing("retain", config.retain_batch) * (config.retain_steps if config.retain_mode == "step" else 1)
    training = drawing("concept", config.batch) + retained
    attacking = share * redrawn * drawing("concept", attack.restarts)
    if words and attacked:
        again = attack.resample == "step" and len(plan.concept.groups) == 1
        attacking += share * (1 + attack.inversion_steps * again) * drawing("concept", words)
    trajectories = {name: len(bank) for name, bank in banks.by_name().items()} if kind.prefilled else {}
    fill = sum(count * plan.bank.sampling_steps * per_step[name] for name, count in trajectories.items())
    more = config.retain_steps - 1 if config.retains and config.retain_mode == "step" else 0
    train = work["train"] + more * config.retain_batch * with_gradient(plan)
    find = share * (steps * work.get("attack", 0) + attack.inversion_steps * work.get("words", 0))
    refresh = training + attacking
    total = fill + n * (train + training) + attacked * (find + attacking)
    return Forwards(bank=fill, attack=find, train=train, refresh=refresh, total=total)
