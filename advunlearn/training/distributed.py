"""Several processes that train one run together, as `accelerate launch` and `torchrun` start them.

Every process draws the same random numbers and takes the same optimiser steps; what the denoiser has to do is shared
out. So N processes make the run that one would make with the same settings, up to the rounding of sums.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import TrainingDiverged

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what a launcher tells its processes


class Batch(Protocol):
    """A tensor (B, ...), or several under one length, as `trajectories.BankSamples`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


B = TypeVar("B", bound=Batch)
Number = TypeVar("Number", float, Tensor)


class Processes:
    """One process alone: its share is the whole, and there is nobody to wait for."""

    rank, count = 0, 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return where this process computes, of a device's name."""
        return name

    def rows(self, n: int) -> slice:
        """Return which of a batch of n samples are this process's."""
        return slice(0, n)

    def share(self, batch: B) -> B:
        """Return this process's samples of a batch."""
        return batch

    def whole(self, share: Tensor, n: int) -> Tensor:
        """Return the batch (n, ...) that this process has a share of."""
        return share

    def part(self, mean: Number, n: int) -> Number:
        """Return what the mean over this process's samples adds to the mean over a batch of n."""
        return mean

    def add(self, tensors: Iterable[Tensor | None]) -> None:
        """Let tensors, in place, be their sums over all processes; what is None is so everywhere."""

    def totals(self, values: Iterable[float]) -> list[float]:
        """Return sums over all processes."""
        return list(values)

    def gathered(self, shard: Tensor, n: int) -> Tensor:
        """Return (n, ...) of which row r was row r // N of process r % N; on others than the main process, nothing.

        The shards are of the same length, some with a row at the end that is nobody's.
        """
        return shard

    def agreed(self, stop: bool) -> bool:
        """Return whether any process is to stop. All wait here for each other."""
        return stop

    def interrupts(self) -> AbstractContextManager[None]:
        """Let an interrupt of one process end all of them where they next agree."""
        return nullcontext()


class Group(Processes):
    """The processes of torch's default process group, which is there already."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.asked, self.interrupted = False, False  # by this process's signal; of all, as they agreed

    def device(self, name: str) -> str:
        """Return the GPU of this process's number on its machine; another device's name as it is."""
        return f"cuda:{os.environ['LOCAL_RANK']}" if name.partition(":")[0] == "cuda" else name

    def rows(self, n: int) -> slice:
        """Return neighbouring samples, in the processes' order."""
        return slice(self.rank * n // self.count, (self.rank + 1) * n // self.count)

    def share(self, batch: B) -> B:
        """See `Processes.share`."""
        return batch[self.rows(len(batch))]

    def whole(self, share: Tensor, n: int) -> Tensor:
        """See `Processes.whole`; adding zeros changes no value."""
        out = share.new_zeros(n, *share.shape[1:])
        out[self.rows(n)] = share
        self.add([out])
        return out

    def part(self, mean: Number, n: int) -> Number:
        """See `Processes.part`."""
        rows = self.rows(n)
        return mean * ((rows.stop - rows.start) / n)

    def add(self, tensors: Iterable[Tensor | None]) -> None:
        """See `Processes.add`; all of them are one message, since gradients are hundreds of tensors."""
        present = [tensor for tensor in tensors if tensor is not None]
        message = torch.cat([tensor.flatten() for tensor in present])
        dist.all_reduce(message)
        for tensor, total in zip(present, message.split([t.numel() for t in present]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def totals(self, values: Iterable[float]) -> list[float]:
        """See `Processes.totals`."""
        out = torch.tensor(list(values), dtype=torch.float64)
        self.add([out])
        return out.tolist()

    def gathered(self, shard: Tensor, n: int) -> Tensor:
        """See `Processes.gathered`."""
        own = shard.contiguous().view(torch.uint8)  # so that every dtype can travel
        shards = [torch.empty_like(own) for _ in range(self.count)] if self.main else None
        dist.gather(own, shards)
        if shards is None:
            return shard[:0]
        return torch.stack(shards, 1).flatten(0, 1)[:n].view(shard.dtype)

    def agreed(self, stop: bool) -> bool:
        """See `Processes.agreed`; an interrupt of any process stops too."""
        flags = torch.tensor([stop, self.asked], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        self.interrupted = bool(flags[1])
        return bool(flags.any())

    @contextlib.contextmanager
    def interrupts(self) -> Iterator[None]:
        """See `Processes.interrupts`; KeyboardInterrupt is raised at the end, in every process."""

        def ask(*_: object) -> None:
            self.asked = True

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.interrupted:
            raise KeyboardInterrupt


SINGLE = Processes()


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that were launched with this one, until all are done; alone where none were.

    A process group that is there already is used, and stays. What all of them end by together, an interrupt or a
    diverged loss, is told by the main process alone; the others leave by SystemExit once that one has ended too, since
    a launcher ends all processes when the first one fails.
    """
    there = dist.is_available() and dist.is_initialized()
    if not there and (any(name not in os.environ for name in LAUNCHED) or os.environ["WORLD_SIZE"] == "1"):
        yield SINGLE
        return
    if not there:
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    group = Group()
    try:
        yield group
    except (KeyboardInterrupt, TrainingDiverged) as error:
        diverged = isinstance(error, TrainingDiverged)
        if diverged or group.interrupted:  # else the others may be anywhere
            group.agreed(False)
        if not group.main:
            raise SystemExit(1 if diverged else 130) from error
        raise
    group.agreed(False)
    if not there:
        dist.destroy_process_group()
