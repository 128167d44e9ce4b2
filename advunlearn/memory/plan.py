"""Memory estimate: the settings that determine a run's cost, and the cost itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..config.training import RunConfig
from ..errors import AdvUnlearnError
from ..files import JsonDict

GIB = 2**30
# Fraction of a device that tensors may take: kernels need scratch memory, allocators leave gaps, drivers need some.
USABLE = 0.9
PUBLISHED_RESOLUTION = 512  # of Stable Diffusion 1.x


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings that determine a run's memory."""

    run: RunConfig = field(default_factory=RunConfig)
    resolution: int  # pixels, 8 to a latent
    dtype: str = ""  # of the frozen parts; "" if a host decides it

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution % 8:
            raise AdvUnlearnError(f"resolution is {self.resolution}; it must be a multiple of 8 pixels")

    def choices(self) -> dict[str, int | str]:
        """Return the settings that advice may change, by the names of the node's inputs and of the flags."""
        return {
            "resolution": self.resolution,
            "dtype": self.dtype,
            "micro_batch": self.run.train.micro_batch,
            "offload": self.run.train.offload,
            "checkpointing": self.run.train.checkpointing,
        }

    def changes(self, start: Plan) -> dict[str, int | str]:
        """Return the `choices` that differ from another plan's."""
        before = start.choices()
        return {k: v for k, v in self.choices().items() if v != before[k]}


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """Work in F: one forward pass of the UNet for one sample; a backward pass to its input counts as two.

    With gradient checkpointing the backward pass contains one more forward pass.
    """

    bank: int  # to fill the banks, once
    attack: int  # one attack
    train: int  # one iteration without its attack
    sampling: int  # samples drawn or renewed during the whole run, on average
    total: int  # the whole run


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Memory of a run, in bytes on the device it computes on unless stated otherwise."""

    weights: int  # the model's own, frozen
    copy: int  # the copy that trains
    gradients: int
    optimiser: int  # Adam's two moments
    last_good: int  # the weights to return to when a loss is not finite
    phases: Mapping[str, int]  # the peak in each phase: bank, attack, inversion, train
    bank: int  # the banks, in CPU memory
    movable: int  # of the weights, those that training needs now and then only
    offloaded: int = 0  # in CPU memory instead of the device's
    device: str
    forwards: Forwards

    @property
    def steady(self) -> int:
        """Memory held between iterations."""
        return self.weights + self.copy + self.gradients + self.optimiser + self.last_good

    @property
    def activations(self) -> dict[str, int]:
        """Memory of each phase above `steady`."""
        return {name: peak - self.steady for name, peak in self.phases.items()}

    @property
    def peak(self) -> int:
        """Peak on the device; on a CPU the banks count as well."""
        return max(self.phases.values()) + (self.bank if self.device == "cpu" else 0)

    def with_offload(self) -> Estimate:
        """Return the estimate of the same run with `offload`; on a CPU there is nothing to gain."""
        if self.device == "cpu":
            return self
        moved = self.last_good + self.optimiser + self.movable
        steady = self.steady - moved
        phases = {name: peak - moved for name, peak in self.phases.items()}
        phases["bank"] = max(phases["bank"], steady + self.movable)  # new trajectories' prompts are encoded
        weights = self.weights - self.movable
        return replace(self, weights=weights, optimiser=0, last_good=0, movable=0, phases=phases, offloaded=moved)

    def fits(self, device_bytes: float) -> bool:
        """Return whether a run fits into a device's memory, of which tensors may take the fraction `USABLE`."""
        return self.peak <= USABLE * device_bytes

    def to_dict(self) -> JsonDict:
        """Return plain values."""
        return dataclasses.asdict(self) | {"steady": self.steady, "peak": self.peak, "activations": self.activations}

    def text(self) -> str:
        """Return the estimate as a readable table."""
        held = {k: getattr(self, k) for k in ("weights", "copy", "gradients", "optimiser", "last_good")}
        rows = [f"  {name.replace('_', ' '):<12}{size / GIB:8.2f} GiB" for name, size in held.items()]
        rows += [
            f"  {name:<12}{size / GIB:8.2f} GiB, {self.activations[name] / GIB:.2f} of it activations"
            for name, size in self.phases.items()
        ]
        f = self.forwards
        return "\n".join(
            [
                f"needs {self.peak / GIB:.2f} GiB on {self.device}; in CPU memory: banks {self.bank / GIB:.2f} GiB, "
                f"offloaded {self.offloaded / GIB:.2f} GiB",
                "held between iterations:",
                *rows[: len(held)],
                "peak in each phase:",
                *rows[len(held) :],
                f"UNet forward passes: {f.bank} to fill the banks, {f.attack} per attack, {f.train} per iteration, "
                f"{f.sampling} to draw or renew samples during the run; {f.total} in total",
            ]
        )
