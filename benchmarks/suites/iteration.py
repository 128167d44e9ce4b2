"""One training iteration: its UNet passes, and its time compared with the published sampler and with bare passes.

The settings are the published ones: an attack of 30 steps on one prompt with new latents in each step, one concept
sample, five retained samples, and trajectories of 50 steps. All three run on the miniature, in one process, in turn.

The published sampler runs each trajectory up to a random step, so that iterations differ in length: its time is the
time per pass times the expected number of passes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.models.counting import count_forwards
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.placement import best_device
from advunlearn.models.text_encoder import frozen
from advunlearn.training.bank import Banks, TrajectoryBank, make_banks
from advunlearn.training.events import Progress
from advunlearn.training.official import FreshSampler, PublishedSampler
from advunlearn.training.trainer import Trainer

from .clock import now

CONCEPT = ConceptConfig(concept="church")
RETAINED = ("a photo of a dog", "a photo of a castle", "a photo of a cup", "a photo of a key", "a photo of a cat")


@dataclass(frozen=True)
class Work:
    """The settings of the iteration that is measured."""

    attack: AdversaryConfig
    train: TrainConfig
    bank: BankConfig

    def attack_draws(self, kind: type[TrajectoryBank | FreshSampler]) -> list[int]:
        """Return the batch sizes drawn for an attack: in each step, or once; a bank draws once more, for the start."""
        steps = self.attack.steps if self.attack.resample == "step" else 0
        return [self.attack.restarts] * (steps + (kind.prefilled or not steps))

    def attack_sampling(self, kind: type[TrajectoryBank | FreshSampler]) -> float:
        """Return the mean number of trajectory steps that an attack costs."""
        return sum(kind.steps_per_draw(count, self.bank) for count in self.attack_draws(kind))

    def train_sampling(self, kind: type[TrajectoryBank | FreshSampler]) -> float:
        """Return the mean number of trajectory steps that a training step costs."""
        retained = kind.steps_per_draw(self.train.retain_batch, self.bank, anchored=False)
        return kind.steps_per_draw(self.train.batch, self.bank) + retained

    def sampling(self, kind: type[TrajectoryBank | FreshSampler], step: Cost) -> Cost:
        """Return the mean cost of sampling trajectories in an iteration, from the cost of one step of a trajectory."""
        steps = self.attack_sampling(kind) + self.train_sampling(kind)
        return Cost(steps * step.seconds, steps * step.forwards)


PUBLISHED = Work(
    AdversaryConfig(steps=30, restarts=1),
    TrainConfig(warmup=0, batch=1, retain_batch=5, clean_share=0.0),
    BankConfig(trajectories=4, retain_trajectories=4, sampling_steps=50),
)


@dataclass(frozen=True)
class Cost:
    """The cost of an iteration, or of one step of a trajectory."""

    seconds: float
    forwards: float  # UNet forward-equivalents of one sample


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum and maximum of repeated measurements."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def sampled(model: TextToImage, kind: type[TrajectoryBank | FreshSampler], work: Work) -> tuple[Banks, Cost]:
    """Fill the banks of a run; return them and the cost of one step of a trajectory."""
    counted: Any = model.denoiser
    began, counted.forwards = now(counted.device), 0
    banks = make_banks(
        model, RunConfig(concept=CONCEPT, bank=work.bank), RETAINED, torch.Generator().manual_seed(0), make=kind
    )
    steps = max(
        1,
        sum(len(bank) for bank in banks.by_name().values() if isinstance(bank, TrajectoryBank))
        * work.bank.sampling_steps,
    )
    return banks, Cost((now(counted.device) - began) / steps, counted.forwards / steps)


def iterations(model: TextToImage, banks: Banks, count: int, work: Work) -> list[Cost]:
    """Run the trainer; return the cost of each iteration. The banks are not renewed, see `Work.sampling`."""
    counted: Any = model.denoiser
    trainer = Trainer(
        model,
        RunConfig(concept=CONCEPT, attack=work.attack, train=replace(work.train, iterations=count), bank=work.bank),
        banks,
        RETAINED,
        torch.Generator().manual_seed(0),
    )
    for bank in banks.by_name().values():
        if isinstance(bank, TrajectoryBank):
            bank.draws = 0
    costs: list[Cost] = []
    began, counted.forwards = now(counted.device), 0

    def mark(progress: Progress) -> None:
        nonlocal began
        if progress.phase == "train":
            ended = now(counted.device)
            costs.append(Cost(ended - began, counted.forwards))
            began, counted.forwards = ended, 0

    trainer.run(mark)
    return costs


def bare(model: TextToImage, work: Work) -> float:
    """Return the seconds of the UNet passes of an iteration alone: forward, and backward to the conditioning."""
    counted: Any = model.denoiser
    context = model.encode(["a church"]).detach()

    def passes(batch: int) -> None:
        x = torch.zeros(batch, *counted.latent_shape, device=counted.device)
        t = torch.full((batch,), 500, device=counted.device)
        given = context.expand(batch, -1, -1).clone().requires_grad_(True)
        torch.autograd.grad(counted.noise_pred(x, t, given).square().mean(), given)

    with frozen(*counted.modules()):
        began = now(counted.device)
        for _ in range(work.attack.steps):
            passes(work.attack.restarts)
        passes(work.train.batch + work.train.retain_batch)
        return now(counted.device) - began


def ours_and_bare(model: TextToImage, banks: Banks, work: Work) -> tuple[Cost, float]:
    """Return the cost of an iteration and the seconds of its bare passes, measured one right after the other."""
    first, *later = iterations(model, banks, 3, work)  # the first also allocates the optimiser's state
    seconds = statistics.median(cost.seconds for cost in later)
    return Cost(seconds, later[-1].forwards), bare(model, work)


def measure(repeats: int = 3, device: str = "", work: Work = PUBLISHED) -> dict[str, Any]:
    """Measure the suite.

    Args:
        repeats: number of repeats, each of three iterations with the bank and one with the published sampler.
        device: the device; empty for the first available.
        work: the settings of an iteration.

    Returns:
        `forward_equivalents_per_iteration`; `speedup_over_official_sampling`, for full iterations with the renewal of
        the bank but without filling it; `overhead_over_bare_passes`, without the renewal; and the `parts` that these
        are made of. Both ratios are medians over the repeats.
    """
    model = load("miniature", device or best_device())
    model = replace(model, denoiser=count_forwards(model.denoiser))
    banks, step = sampled(model, TrajectoryBank, work)
    fresh, _ = sampled(model, PublishedSampler, work)
    renewed = work.sampling(TrajectoryBank, step)
    bare(model, work)
    ours, passes, drawn = [], [], []
    for _ in range(repeats):
        one, alone = ours_and_bare(model, banks, work)
        ours.append(one)
        passes.append(alone)
        drawn += iterations(model, fresh, 1, work)
    needed = ours[-1].forwards
    expected = needed + work.sampling(PublishedSampler, step).forwards
    official = [cost.seconds / cost.forwards * expected for cost in drawn]
    speedups = [theirs / (one.seconds + renewed.seconds) for theirs, one in zip(official, ours, strict=True)]
    overheads = [one.seconds / alone for one, alone in zip(ours, passes, strict=True)]
    return {
        "forward_equivalents_per_iteration": needed + renewed.forwards,
        "speedup_over_official_sampling": statistics.median(speedups),
        "overhead_over_bare_passes": statistics.median(overheads),
        "parts": {
            "attack_and_training_forward_equivalents": needed,
            "renewal_forward_equivalents": renewed.forwards,
            "official_forward_equivalents": expected,
            "speedup": spread(speedups),
            "overhead": spread(overheads),
            "seconds": spread([one.seconds for one in ours]),
            "renewal_seconds": renewed.seconds,
            "official_seconds": spread(official),
            "bare_seconds": spread(passes),
        },
        "settings": {
            "attack": work.attack.to_dict(),
            "train": work.train.to_dict(),
            "bank": work.bank.to_dict(),
            "repeats": repeats,
        },
    }
