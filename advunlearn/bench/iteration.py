"""One training iteration: its UNet passes, and its time over that of the published way to sample and of bare passes.

Settings are the published ones: an attack of 30 steps on one prompt with fresh latents in each, one concept sample and
five retained, trajectories of 50 steps. All three ways run on the shipped miniature in one process, in turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..config import AttackConfig, BankConfig, ConceptConfig, TrainConfig
from ..denoisers.counting import counting
from ..events import Progress
from ..fresh import FreshSampler
from ..models import TextToImage, best_device, load
from ..text_encoder import frozen
from ..trainer import Trainer
from ..trajectories import Banks, TrajectoryBank, make_banks
from .clock import now

CONCEPT = ConceptConfig(concept="church")
ATTACK = AttackConfig(steps=30, restarts=1)
TRAIN = TrainConfig(warmup=0, batch=1, retain_batch=5, clean_share=0.0)
BANK = BankConfig(trajectories=4, retain_trajectories=4, sampling_steps=50)
RETAINED = ("a photo of a dog", "a photo of a castle", "a photo of a cup", "a photo of a key", "a photo of a cat")


@dataclass(frozen=True)
class Cost:
    """Of one iteration, or one step of one trajectory."""

    seconds: float
    forwards: float  # UNet forward-equivalents of one sample


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median of repeated measurements, and the least and the most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def sampled(model: TextToImage, kind: type[TrajectoryBank]) -> tuple[Banks, Cost]:
    """Fill a run's banks; return them and what a step of a trajectory took."""
    counted: Any = model.denoiser
    began, counted.forwards = now(counted.device), 0
    banks = make_banks(model, CONCEPT, RETAINED, BANK, torch.Generator().manual_seed(0), bank=kind)
    steps = max(1, sum(len(bank) for bank in banks.all().values()) * BANK.sampling_steps)
    return banks, Cost((now(counted.device) - began) / steps, counted.forwards / steps)


def iterations(model: TextToImage, banks: Banks, count: int) -> list[Cost]:
    """Run the real trainer; return what each iteration took. Banks stay as they are: see `renewal`."""
    counted: Any = model.denoiser
    trainer = Trainer(
        model, CONCEPT, ATTACK, replace(TRAIN, iterations=count), banks, RETAINED, torch.Generator().manual_seed(0)
    )
    for bank in banks.all().values():
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


def renewal(step: Cost) -> Cost:
    """Return what renewing the bank takes in an iteration, on average: each draw a share of a step."""
    draws = TRAIN.batch + TRAIN.retain_batch + ATTACK.restarts * (1 + ATTACK.steps * (ATTACK.redraw == "step"))
    share = TrajectoryBank.sampling_of(draws, BANK)
    return Cost(share * step.seconds, share * step.forwards)


def bare(model: TextToImage) -> float:
    """Return the seconds of an iteration's UNet passes alone: forward and backward to the conditioning."""
    counted: Any = model.denoiser
    context = model.encode(["a church"]).detach()

    def passes(batch: int) -> None:
        x = torch.zeros(batch, *counted.latent_shape, device=counted.device)
        t = torch.full((batch,), 500, device=counted.device)
        given = context.expand(batch, -1, -1).clone().requires_grad_(True)
        torch.autograd.grad(counted.noise_pred(x, t, given).square().mean(), given)

    with frozen(*counted.modules()):
        began = now(counted.device)
        for _ in range(ATTACK.steps):
            passes(ATTACK.restarts)
        passes(TRAIN.batch + TRAIN.retain_batch)
        return now(counted.device) - began


def measure(repeats: int = 3, device: str = "") -> dict[str, Any]:
    """Measure the suite.

    Args:
        repeats: how often each way runs; two iterations of ours, one of the published sampling.
        device: where; empty for the first that is there.

    Returns:
        `forward_equivalents_per_iteration`; `speedup_over_official_sampling`, whole iterations with the renewal of the
        bank, without filling it; `overhead_over_bare_passes`, without the renewal, which bare passes have none of; and
        the parts that these are made of.
    """
    model = load("miniature", device or best_device())
    model = replace(model, denoiser=counting(model.denoiser))
    banks, step = sampled(model, TrajectoryBank)
    fresh, _ = sampled(model, FreshSampler)
    renewed = renewal(step)
    ours: list[float] = []
    official: list[float] = []
    passes: list[float] = []
    count: dict[str, float] = {}

    def ours_once() -> None:
        costs = iterations(model, banks, 3)[1:]  # the first one also makes the optimiser's state
        ours.append(statistics.median(c.seconds for c in costs))
        count["ours"] = costs[-1].forwards

    def official_once() -> None:
        cost = iterations(model, fresh, 1)[0]
        official.append(cost.seconds)
        count["official"] = cost.forwards

    ways: list[Callable[[], None]] = [lambda: passes.append(bare(model)), ours_once, official_once]
    bare(model)
    for _ in range(repeats):
        for way in ways:
            way()
    whole = [seconds + renewed.seconds for seconds in ours]
    return {
        "forward_equivalents_per_iteration": count["ours"] + renewed.forwards,
        "speedup_over_official_sampling": statistics.median(official) / statistics.median(whole),
        "overhead_over_bare_passes": statistics.median(ours) / statistics.median(passes),
        "parts": {
            "attack_and_training_forward_equivalents": count["ours"], "renewal_forward_equivalents": renewed.forwards,
            "official_forward_equivalents": count["official"], "seconds": spread(ours),
            "renewal_seconds": renewed.seconds, "official_seconds": spread(official), "bare_seconds": spread(passes),
        },
        "settings": {
            "attack": ATTACK.to_dict(), "train": TRAIN.to_dict(), "bank": BANK.to_dict(), "repeats": repeats,
        },
    }  # fmt: skip
