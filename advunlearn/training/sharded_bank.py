"""A trajectory bank that is spread over several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .bank import BankSamples, TrajectoryBank
from .distributed import Processes

SHARDED = ("x_t", "eps_anchor", "eps_cond")


class ShardedBank(TrajectoryBank):
    """A bank whose row r is sampled and kept by process r % N of N, in a row r // N of its own.

    Which rows are sampled, of what noise, and which are drawn is the same in all processes: each has the whole bank's
    generator, counters and prompt numbers. What is drawn comes from whoever keeps it, so all processes draw together.
    """

    processes: Processes

    def allocate(self, size: int) -> None:
        """Make room for this process's share of `size` trajectories; all have as much."""
        super().allocate(-(-size // self.processes.count))
        self.prompt = torch.zeros(size, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.prompt)

    def tensors(self) -> dict[str, Tensor]:
        """Return what was sampled: all of it on the main process, no trajectories on the others."""
        gathered = {name: self.processes.gathered(getattr(self, name), len(self)) for name in self._shared()}
        return {**super().tensors(), **gathered}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take this process's share of a whole bank."""
        super().restore({name: value for name, value in state.items() if name not in SHARDED})
        for name in self._shared():
            own = state[name][self.processes.rank :: self.processes.count]
            getattr(self, name)[: len(own)] = own

    def _shared(self) -> tuple[str, ...]:
        """Return the names of what the processes keep a share of."""
        return tuple(name for name in SHARDED if self.anchored or name != "eps_anchor")

    def _fill(self, rows: Sequence[int], numbers: Tensor, noise: Tensor, last: int | None = None) -> None:
        rank, count = self.processes.rank, self.processes.count
        own = [i for i, row in enumerate(rows) if row % count == rank]
        if own:
            super()._fill([rows[i] // count for i in own], numbers[own], noise[own], last)

    def _triples(self, row: Tensor, k: Tensor) -> BankSamples:
        rank, count = self.processes.rank, self.processes.count
        kept = super()._triples(row // count, k)
        values = torch.stack([kept.x_t, kept.cond, *([kept.anchor] if self.anchored else [])])
        values[:, row % count != rank] = 0  # of others, who add theirs
        self.processes.add([values])
        anchor = values[2] if self.anchored else kept.anchor
        prompt = self.prompt[row].to(kept.prompt.device)
        return replace(kept, x_t=values[0], cond=values[1], anchor=anchor, prompt=prompt)


def sharded(processes: Processes) -> type[TrajectoryBank]:
    """Return the bank of a group of processes."""
    return type("ShardedBank", (ShardedBank,), {"processes": processes})
