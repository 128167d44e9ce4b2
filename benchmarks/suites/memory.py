"""The memory of a run: the estimate compared with the allocations of the CPU allocator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.memory.estimate import estimate
from advunlearn.memory.plan import GIB, PUBLISHED_RESOLUTION, Plan
from advunlearn.models.loading import TextToImage
from advunlearn.models.meta_model import skeleton
from advunlearn.training.trainer import train

BANK = BankConfig(trajectories=2, retain_trajectories=2, sampling_steps=2)
RETAINED = ("a photo of a dog", "a photo of a cat")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A training run of two iterations with random weights."""

    model: str
    resolution: int
    dtype: str
    restarts: int
    batch: int
    retain_batch: int
    checkpointing: bool = False
    micro_batch: int = 0

    @property
    def plan(self) -> Plan:
        """The settings of the case."""
        config = TrainConfig(
            iterations=2,
            warmup=0,
            batch=self.batch,
            retain_batch=self.retain_batch,
            checkpointing=self.checkpointing,
            micro_batch=self.micro_batch,
        )
        attack = AdversaryConfig(steps=1, restarts=self.restarts)
        return Plan(run=RunConfig(attack=attack, train=config, bank=BANK), resolution=self.resolution, dtype=self.dtype)

    def predicted(self) -> int:
        """Return the estimate in bytes."""
        return estimate(skeleton(self.model, CPU, getattr(torch, self.dtype)), self.plan, RETAINED, CPU).peak

    def run(self) -> None:
        """Train, as a user would."""
        plan = self.plan
        model = random_model(self.model, self.resolution, getattr(torch, self.dtype))
        train(model, plan.run, RETAINED)


def random_model(name: str, resolution: int, dtype: torch.dtype, device: torch.device = CPU) -> TextToImage:
    """Return a model with random weights, for images of `resolution` pixels; `name` as in `skeleton`."""
    model = skeleton(name, device, dtype)
    generator = torch.Generator(device).manual_seed(0)
    for part in (model.text_encoder, model.denoiser.unet, model.vae):  # type: ignore[attr-defined]
        part.to_empty(device=device)
        for tensor in part.parameters():
            tensor.data.normal_(0, 0.02, generator=generator)
    for name, buffer in model.text_encoder.named_buffers():
        if name.endswith("position_ids"):
            buffer.data = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
    size = resolution // 8
    model.denoiser.latent_shape = (model.denoiser.latent_shape[0], size, size)
    return model


# Settings for a card with this much memory, a tenth of it to spare: SD 1.5 at 512 pixels, frozen parts in 16 bits.
CARDS = {
    "8 GiB": TrainConfig(checkpointing=True, batch=4, retain_batch=8),
    "6 GiB": TrainConfig(checkpointing=True, batch=2, retain_batch=4),
}
CASES = {
    "miniature-64": Case("miniature", 64, "float32", 4, 8, 12),
    "miniature-64-checkpointed": Case("miniature", 64, "float32", 4, 8, 12, True),
    "sd15-128": Case("sd15", 128, "float32", 2, 2, 2),
}
SHOWN = "sd15-128"


def predicted_on(card: TrainConfig) -> float:
    """Return the estimate in GiB, on a GPU, of Stable Diffusion 1.5 at 512 pixels with an attack of 30 steps."""
    device = torch.device("cuda")
    plan = Plan(
        run=RunConfig(attack=AdversaryConfig(steps=30), train=card), resolution=PUBLISHED_RESOLUTION, dtype="float16"
    )
    return estimate(skeleton("sd15", device, torch.float16), plan, RETAINED, device).peak / GIB


def by_allocator(run: Callable[[], None]) -> int:
    """Return the peak of the bytes allocated by the CPU allocator during a run."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held = peak = 0
    events = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(repeats: int = 1, device: str = "") -> dict[str, Any]:
    """Predict and measure each case once, on the CPU; the result does not change from run to run.

    Returns:
        `predicted_gib` and `measured_gib` of Stable Diffusion 1.5's shape; both and their ratio for each of `cases`;
        `sd15_512px_gib`, a prediction only, for the settings of each card.
    """
    rows = {}
    for name, case in CASES.items():
        predicted, measured = case.predicted() / GIB, by_allocator(case.run) / GIB
        rows[name] = {"predicted_gib": predicted, "measured_gib": measured, "ratio": predicted / measured}
    shown = {k: rows[SHOWN][k] for k in ("predicted_gib", "measured_gib")}
    return shown | {"sd15_512px_gib": {name: predicted_on(card) for name, card in CARDS.items()}, "cases": rows}
