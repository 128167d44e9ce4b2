"""The memory of a denoiser's pass, measured once on fake tensors for any number of samples.

A pass takes a fixed number of bytes and a number for each sample. Both come from one pass of `PASS_SAMPLES`: a
storage that grows with the samples has a multiple of `PASS_SAMPLES` bytes, and no other has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..models.counting import BACKWARD
from ..models.denoiser import Denoiser, checkpointed
from .fake_tensors import LiveMemory

# A prime that divides the width of no layer; diffusers' upsampling copies larger batches (64 and more).
PASS_SAMPLES = 61


@dataclass(frozen=True)
class Affine:
    """A number of bytes that grows with the number of samples."""

    fixed: int = 0
    per_sample: int = 0

    def __call__(self, samples: int) -> int:
        return self.fixed + self.per_sample * samples

    def __add__(self, other: Affine) -> Affine:
        return Affine(self.fixed + other.fixed, self.per_sample + other.per_sample)

    def __sub__(self, other: Affine) -> Affine:
        return Affine(self.fixed - other.fixed, self.per_sample - other.per_sample)


@dataclass
class Peak:
    """The maximum of affine functions: which one is the largest depends on the number of samples."""

    functions: list[Affine] = field(default_factory=list)

    def __call__(self, samples: int) -> int:
        return max((function(samples) for function in self.functions), default=0)

    def include(self, new: Affine) -> None:
        """Add a function, unless another one is at least as large for any number of samples."""
        if any(old.fixed >= new.fixed and old.per_sample >= new.per_sample for old in self.functions):
            return
        self.functions = [f for f in self.functions if f.fixed > new.fixed or f.per_sample > new.per_sample] + [new]


class PassRecorder:
    """Tells the storages that grow with the samples of a pass of `samples` from those that do not.

    With `linear` false, nothing is assumed to grow, and the result holds for that number of samples only.
    """

    def __init__(self, samples: int, linear: bool) -> None:
        self.samples = samples
        self.linear = linear
        self.held = Affine()
        self.peak = Peak()

    def split(self, size: int) -> Affine:
        """Return the bytes of a storage as a function of the number of samples."""
        return Affine(0, size // self.samples) if self.linear and size % self.samples == 0 else Affine(size)

    def change(self, size: int) -> None:
        """Count a storage that is made, or with a negative size freed."""
        if size < 0:
            self.held -= self.split(-size)
        else:
            self.held += self.split(size)
            self.peak.include(self.held)

    def restart_peak(self) -> None:
        """Forget the peak so far; what is held now counts."""
        self.peak = Peak([self.held])


@dataclass(frozen=True)
class PassMemory:
    """The memory of one pass above what was held before it, as functions of the number of samples."""

    forward: Peak
    held: Affine  # by the graph, until the backward pass
    backward: Peak


def measure_pass(
    denoiser: Denoiser, live: LiveMemory, width: tuple[int, ...], gradients: bool, checkpointing: bool, samples: int = 0
) -> PassMemory:
    """Measure a pass on fake tensors, with its backward pass to the conditioning or without gradients.

    Args:
        denoiser: a denoiser on fake tensors.
        live: the mode that counts storages; the pass leaves it unchanged.
        width: (L, D) of the conditioning.
        gradients: whether the conditioning requires a gradient.
        checkpointing: whether the blocks are recomputed in the backward pass.
        samples: measure for this number of samples only; 0: for any number.
    """
    count = samples or PASS_SAMPLES
    recorder = PassRecorder(count, linear=not samples)
    blocks = denoiser.blocks() if checkpointing else ()
    with torch.set_grad_enabled(gradients), checkpointed(blocks), live.recorded_by(PassRecorder(count, False)):
        x_t = torch.empty(count, *denoiser.latent_shape)
        t = torch.empty(count, dtype=torch.long)
        conditioning = torch.empty(count, *width, requires_grad=gradients)
        upstream = torch.empty_like(x_t)
        with live.recorded_by(recorder):
            output = denoiser.noise_pred(x_t, t, conditioning)
            forward, held = recorder.peak, recorder.held - recorder.split(output.numel() * output.element_size())
            recorder.restart_peak()
            if gradients:
                torch.autograd.grad(output, conditioning, upstream)
            del output
        del x_t, t, conditioning, upstream
    return PassMemory(forward, held, recorder.peak)


class _Pass(torch.autograd.Function):
    """A pass that computes nothing and holds what a real one does."""

    @staticmethod
    def forward(ctx: Any, conditioning: Tensor, x_t: Tensor, memory: PassMemory, live: LiveMemory) -> Tensor:
        ctx.like, ctx.memory, ctx.live = conditioning.shape, memory, live
        live.include(memory.forward(len(x_t)))
        ctx.activations = torch.empty(memory.held(len(x_t)), dtype=torch.uint8)
        return torch.empty(x_t.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.activations = None
        ctx.live.include(ctx.memory.backward(len(upstream)))
        return torch.empty(ctx.like), None, None, None


class PassDenoiser:
    """A denoiser whose passes take memory and no time. It has no weights.

    Args:
        denoiser: a denoiser on fake tensors, whose passes are measured when they are first needed.
        live: the mode that counts storages.
        latent_shape: (C, h, w).
        checkpointing: whether its blocks are recomputed in the backward pass.
        linear: measure once for any number of samples; false: once for each number.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        denoiser: Denoiser,
        live: LiveMemory,
        latent_shape: tuple[int, int, int],
        checkpointing: bool,
        linear: bool,
    ) -> None:
        self.measured = denoiser.with_modules(lambda module: module)
        self.measured.latent_shape = self.latent_shape = latent_shape
        self.alphas_cumprod = denoiser.alphas_cumprod
        self.live = live
        self.checkpointing = checkpointing
        self.linear = linear
        self.measure = functools.cache(self._measure)
        self.forwards = 0  # in F, so far

    def _measure(self, width: tuple[int, ...], gradients: bool, samples: int) -> PassMemory:
        return measure_pass(self.measured, self.live, width, gradients, self.checkpointing, samples)

    def modules(self) -> tuple[nn.Module, ...]:
        """See `Denoiser.modules`."""
        return ()

    def blocks(self) -> tuple[nn.Module, ...]:
        """See `Denoiser.blocks`."""
        return ()

    def with_modules(self, make: Callable[[nn.Module], nn.Module]) -> PassDenoiser:
        """See `Denoiser.with_modules`."""
        return self

    def fingerprint(self) -> str:
        """See `Denoiser.fingerprint`."""
        return ""

    def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """Return a prediction (B, C, h, w) without values."""
        gradients = conditioning.requires_grad and torch.is_grad_enabled()
        self.forwards += len(x_t) * (1 + (BACKWARD + self.checkpointing) * gradients)
        memory = self.measure(tuple(conditioning.shape[1:]), gradients, 0 if self.linear else len(x_t))
        if not gradients:
            self.live.include(memory.forward(len(x_t)))
            return torch.empty(x_t.shape)
        output: Tensor = _Pass.apply(conditioning, x_t, memory, self.live)
        return output
