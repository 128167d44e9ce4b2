"""What a run is to be, as far as that decides what it takes; and what it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config.adversary import AdversaryConfig
from ..config.concept import ConceptConfig
from ..config.training import BankConfig, TrainConfig
from ..errors import AdvUnlearnError

GIB = 2**30
# Not all of a device is for tensors: kernels want scratch memory, allocators leave gaps, a driver keeps its context.
USABLE = 0.9
PUBLISHED_RESOLUTION = 512  # of Stable Diffusion 1.x


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a run that decide what it takes."""

    concept: ConceptConfig = field(default_factory=ConceptConfig)
    attack: AdversaryConfig = field(default_factory=AdversaryConfig)
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
            "resolution": self.resolution,
            "dtype": self.dtype,
            "attack_restarts": self.attack.restarts,
            "attack_inversion_tokens": self.attack.inversion_tokens,
            "batch": self.train.batch,
            "retain_batch": self.train.retain_batch,
            "checkpointing": self.train.checkpointing,
        }

    def changes(self, start: Plan) -> dict[str, int | str]:
        """Return those that differ from another plan's."""
        before = start.choices()
        return {k: v for k, v in self.choices().items() if v != before[k]}


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """Work in F: one forward pass of the UNet for one sample; a backward pass to its input counts as two.

    With gradient checkpointing the backward pass holds one more forward pass.
    """

    bank: float  # to fill the banks, once
    attack: float  # per iteration after the warm-up, on average
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
    phases: Mapping[str, int]  # the most in each phase: bank, attack, words, train
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
        return "\n".join(
            [
                f"needs {self.peak / GIB:.2f} GiB on {self.device}; banks in CPU memory: {self.bank / GIB:.2f} GiB",
                "held between iterations:",
                *rows[: len(held)],
                "at most while it does this:",
                *rows[len(held) :],
                f"UNet forwards: {f.bank:.0f} to fill the banks, then per iteration {f.attack:.0f} to attack, "
                f"{f.train:.0f} to train, {f.refresh:.1f} to renew the banks; {f.total:.0f} in all",
            ]
        )
