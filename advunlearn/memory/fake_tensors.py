"""Count the bytes that tensors hold, of real tensors and of fake ones alike, and make fake copies of modules."""

from __future__ import annotations

import contextlib
import copy
import math
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..errors import AdvUnlearnError


class TooLong(AdvUnlearnError):
    """Counting took longer than it was given."""


# What any network's forward pass does again and again, and nobody's cleaning up.
PRODUCTS = {F.linear, F.conv2d, torch.bmm, torch.baddbmm, torch.matmul, torch.einsum}


class Deadline(TorchFunctionMode):
    """A mode in which the next product of tensors after a time limit raises TooLong; None for no limit."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__()
        self.end = math.inf if seconds is None else time.monotonic() + seconds

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Look at the clock, then make the call."""
        if func in PRODUCTS and time.monotonic() > self.end:
            raise TooLong("the memory could not be counted in time")
        return func(*args, **(kwargs or {}))


class Recorder(Protocol):
    """Counts storages in the place of a `LiveMemory`."""

    def change(self, size: int) -> None:
        """See `LiveMemory.change`."""
        ...


class LiveMemory(TorchDispatchMode):
    """A mode that sees every operation and follows each storage it makes until that is freed.

    `live` is what is held now, `peaks` the most that was held in each `phase`, both in bytes. Scratch memory inside a
    kernel is not seen. Under FakeTensorMode nothing is computed and nothing allocated; a value that the program reads
    back is then 1.0, or 0 where it is a whole number. Nothing may be raised in here: under a convolution torch ends the
    whole process then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.phase = 0, ""
        self.peaks: Counter[str] = Counter()
        self.held: dict[int, weakref.ref[Any]] = {}
        self.counter: Recorder = self  # of the storages that are made now

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps every call and imports its compiler for that

    def follow(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.held:
            return

        counter = self.counter

        def freed(_: Any) -> None:
            del self.held[key]
            counter.change(-size)

        self.held[key] = weakref.ref(storage, freed)
        counter.change(size)

    def change(self, size: int) -> None:
        """Count a storage of that many bytes that is made, or with a negative size freed."""
        self.live += size
        self.include(0)

    def include(self, extra: int) -> None:
        """Note that so many bytes more than now are held for a moment."""
        self.peaks[self.phase] = max(self.peaks[self.phase], self.live + extra)

    @contextlib.contextmanager
    def recorded_by(self, recorder: Recorder) -> Iterator[None]:
        """Let a recorder count the storages that are made in this context."""
        before, self.counter = self.counter, recorder
        try:
            yield
        finally:
            self.counter = before

    def enter(self, phase: str) -> None:
        """Begin a phase; its peak is at least what is held now."""
        self.phase = phase
        self.include(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and follow what it returns."""
        # Two of three calls, and torch's answer is slow.
        if func is torch.ops.prim.device.default and _is_fake(args[0]):
            return args[0].fake_device
        if func is torch.ops.aten._local_scalar_dense.default and _is_fake(args[0]):
            return 1.0 if args[0].is_floating_point() else 0
        output = func(*args, **(kwargs or {}))
        for item in tree_flatten(output)[0]:
            if isinstance(item, Tensor):
                self.follow(item)
        return output


def _is_fake(tensor: Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def fake_copy(module: Any, dtype: torch.dtype | None = None, memo: dict[int, Any] | None = None) -> Any:
    """Return a module like `module`, frozen, whose weights and buffers are new and empty, on the CPU.

    Called under FakeTensorMode it takes no memory, whatever the size and wherever the module's weights are, on the meta
    device too. Everything else is shared with `module`, which stays as it is. With `dtype`, what is floating gets that.
    A deep copy of the result is another one.
    """
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    memo[id(module)] = other = copy.copy(module)
    tensors = {}
    for kind in ("_parameters", "_buffers"):
        for name, tensor in getattr(module, kind).items():
            if tensor is not None and id(tensor) not in memo:
                kept = dtype if dtype and tensor.is_floating_point() else tensor.dtype
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=kept, device="cpu")
                memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if kind == "_parameters" else empty
            tensors[name] = None if tensor is None else memo[id(tensor)]
        setattr(other, kind, {name: tensors[name] for name in getattr(module, kind)})
    other._modules = {k: None if c is None else fake_copy(c, dtype, memo) for k, c in module._modules.items()}
    other.__deepcopy__ = lambda shared: fake_copy(other, None, shared)
    return other
