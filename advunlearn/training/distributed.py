"""Several processes that train one run together, as `accelerate launch` and `torchrun` start them.

Every process draws the same random numbers and takes the same optimiser steps; the denoiser's work is divided. So N
processes make the run that a single one would make with the same settings, up to the rounding of sums.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import TrainingDiverged
from .bank import BankSamples, TrajectoryBank

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Batch(Protocol):
    """A tensor (B, ...), or several of the same length, as `bank.BankSamples`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


B = TypeVar("B", bound=Batch)
Number = TypeVar("Number", float, Tensor)


class Processes:
    """A single process: its shard is the whole batch, and sums over processes are its own values."""

    rank = 0
    count = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return the device of this process, given a device's name."""
        return name

    def rows(self, n: int) -> slice:
        """Return the rows of a batch of n that belong to this process."""
        return slice(0, n)

    def shard(self, batch: B) -> B:
        """Return this process's rows of a batch."""
        return batch

    def all_gather_rows(self, shard: Tensor, n: int) -> Tensor:
        """Return the batch (n, ...) of which each process has a shard."""
        return shard

    def scale_mean(self, mean: Number, n: int) -> Number:
        """Scale a local mean so that the sum over processes is the mean of the global batch of n."""
        return mean

    def all_reduce_(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace tensors by their sums over all processes, in place; a None must be None in every process."""

    def sum_values(self, values: Iterable[float]) -> list[float]:
        """Return the sums of values over all processes."""
        return list(values)

    def gather_interleaved(self, shard: Tensor, n: int) -> Tensor:
        """Return (n, ...) in the main process, where row r is row r // N of process r % N; (0, ...) in the others.

        All shards have the same length; some have an unused row at the end.
        """
        return shard

    def any_rank(self, flag: bool) -> bool:
        """Return whether the flag is set in any process. All processes wait here for each other."""
        return flag

    def deferred_interrupts(self) -> AbstractContextManager[None]:
        """Let an interrupt of one process end all of them at the next `any_rank`."""
        return nullcontext()


class Group(Processes):
    """The processes of torch's default process group, which must exist."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        self.signalled = False  # this process received an interrupt
        self.interrupted = False  # some process did, as of the last `any_rank`

    def device(self, name: str) -> str:
        """Return the GPU with this process's local rank; other devices stay."""
        return f"cuda:{os.environ['LOCAL_RANK']}" if name.partition(":")[0] == "cuda" else name

    def rows(self, n: int) -> slice:
        """Return a contiguous block of rows, in the order of ranks."""
        return slice(self.rank * n // self.count, (self.rank + 1) * n // self.count)

    def shard(self, batch: B) -> B:
        """Return this process's rows of a batch."""
        return batch[self.rows(len(batch))]

    def all_gather_rows(self, shard: Tensor, n: int) -> Tensor:
        """Return the whole batch (n, ...); it is a sum with zeros, which changes no value."""
        out = shard.new_zeros(n, *shard.shape[1:])
        out[self.rows(n)] = shard
        self.all_reduce_([out])
        return out

    def scale_mean(self, mean: Number, n: int) -> Number:
        """Scale a local mean so that the sum over processes is the mean of the global batch of n."""
        rows = self.rows(n)
        return mean * ((rows.stop - rows.start) / n)

    def all_reduce_(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace tensors by their sums, in one message, since gradients are hundreds of tensors."""
        present = [tensor for tensor in tensors if tensor is not None]
        message = torch.cat([tensor.flatten() for tensor in present])
        dist.all_reduce(message)
        for tensor, total in zip(present, message.split([t.numel() for t in present]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def sum_values(self, values: Iterable[float]) -> list[float]:
        """Return the sums of values over all processes."""
        out = torch.tensor(list(values), dtype=torch.float64)
        self.all_reduce_([out])
        return out.tolist()

    def gather_interleaved(self, shard: Tensor, n: int) -> Tensor:
        """Return the interleaved rows of all processes, in the main one."""
        own = shard.contiguous().view(torch.uint8)  # a dtype that every backend can send
        shards = [torch.empty_like(own) for _ in range(self.count)] if self.main else None
        dist.gather(own, shards)
        if shards is None:
            return shard[:0]
        return torch.stack(shards, 1).flatten(0, 1)[:n].view(shard.dtype)

    def any_rank(self, flag: bool) -> bool:
        """Return whether the flag is set, or an interrupt was received, in any process."""
        flags = torch.tensor([flag, self.signalled], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        self.interrupted = bool(flags[1])
        return bool(flags.any())

    @contextlib.contextmanager
    def deferred_interrupts(self) -> Iterator[None]:
        """Note SIGINT instead of raising; at the end raise KeyboardInterrupt in every process if one received it."""

        def note(*_: object) -> None:
            self.signalled = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.interrupted:
            raise KeyboardInterrupt


class ShardedBank(TrajectoryBank):
    """A bank whose row r is sampled and stored by process r % N of N, as its row r // N.

    The rows to sample, their noise and the rows to draw are the same in all processes: each has the whole bank's
    generator, counters and prompt indices. A drawn sample comes from the process that stores it, so all draw together.
    """

    stored = ("x_t", "eps_anchor", "eps_cond")

    def __init__(self, *args: Any, processes: Processes, **options: Any) -> None:
        self.processes = processes
        super().__init__(*args, **options)

    def allocate(self, size: int) -> None:
        """Allocate this process's share of `size` trajectories; all shares have the same size."""
        super().allocate(-(-size // self.processes.count))

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole bank in the main process, and no trajectories in the others."""
        gathered = {name: self.processes.gather_interleaved(getattr(self, name), len(self)) for name in self._stored()}
        return {**super().tensors(), **gathered}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take this process's share of a whole bank."""
        super().restore({name: value for name, value in state.items() if name not in self.stored})
        for name in self._stored():
            own = state[name][self.processes.rank :: self.processes.count]
            getattr(self, name)[: len(own)] = own

    def _stored(self) -> tuple[str, ...]:
        """Return the names of the tensors that the processes share."""
        return tuple(name for name in self.stored if self.sampler.anchored or name != "eps_anchor")

    def _fill(self, rows: Sequence[int], prompts: Tensor, noise: Tensor, last: int | None = None) -> None:
        rank, count = self.processes.rank, self.processes.count
        own = [i for i, row in enumerate(rows) if row % count == rank]
        if own:
            super()._fill([rows[i] // count for i in own], prompts[own], noise[own], last)

    def _samples_at(self, row: Tensor, k: Tensor) -> BankSamples:
        rank, count = self.processes.rank, self.processes.count
        local = super()._samples_at(row // count, k)
        values = torch.stack([local.x_t, local.cond, *([local.anchor] if self.sampler.anchored else [])])
        values[:, row % count != rank] = 0  # stored by other processes, which add them
        self.processes.all_reduce_([values])
        anchor = values[2] if self.sampler.anchored else local.anchor
        prompt = self.prompt[row].to(local.prompt.device)
        return replace(local, x_t=values[0], cond=values[1], anchor=anchor, prompt=prompt)


SINGLE = Processes()


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that a launcher started with this one, until all are done; without a launcher, be single.

    An existing process group is used and not destroyed. An interrupt or a diverged loss, which end all processes
    together, is reported by the main process only; the others leave by SystemExit after it, since a launcher ends all
    processes when the first one fails.
    """
    there = dist.is_available() and dist.is_initialized()
    if not there and (any(name not in os.environ for name in LAUNCHER_VARIABLES) or os.environ["WORLD_SIZE"] == "1"):
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
        if diverged or group.interrupted:  # otherwise the others may be in any collective call
            group.any_rank(False)
        if not group.main:
            raise SystemExit(1 if diverged else 130) from error
        raise
    group.any_rank(False)
    if not there:
        dist.destroy_process_group()
