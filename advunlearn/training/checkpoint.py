"""A run's state on disk, so that a run that was cancelled, or killed, goes on and ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import pathlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..config.base import first_difference
from ..errors import AdvUnlearnError, TrainingDiverged
from ..files import PARTIAL, STATE, write_atomic
from .bank import Banks
from .distributed import SINGLE, Processes

BANK = "bank-{}.pt"
FREE = ("iterations", "checkpointing")  # settings that a run may change when it goes on


class Checkpoints:
    """The states of one run in a folder: `state.pt`, and the trajectory bank that it names.

    Files are written beside their names and then moved there; the bank, which is large and changes rarely, is written
    first and only when it changed. So whatever moment a run is killed at, `state.pt` and the bank it names are whole.

    Args:
        folder: the run's folder; made when something is saved.
        every: iterations between two states. A run writes one more before its first, and where it is interrupted.
    """

    def __init__(self, folder: str | pathlib.Path, every: int = 50) -> None:
        self.folder, self.every = pathlib.Path(folder), every

    def save(self, state: Mapping[str, Any], bank: Mapping[str, Any], version: str) -> None:
        """Write a state and, when its version is new, the bank; drop the banks that no state names."""
        path = self.folder / BANK.format(version)
        if not path.exists():
            write_atomic(path, lambda file: torch.save(bank, file))
        write_atomic(self.folder / STATE, lambda file: torch.save({**state, "bank": path.name}, file))
        for other in self.folder.glob(BANK.format("*")):
            if other != path:
                other.unlink()

    def exists(self) -> bool:
        """Return whether there is a state to go on from."""
        return (self.folder / STATE).is_file()

    def load(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the state and the bank.

        Raises AdvUnlearnError when there is none, it cannot be read, or it is of a run with other settings.
        """
        if not self.exists():
            raise AdvUnlearnError(f"{self.folder} holds no {STATE} to go on from; start the run without resume")
        try:
            state = torch.load(self.folder / STATE, weights_only=True)
            bank = torch.load(self.folder / state["bank"], weights_only=True)
        except Exception as error:  # what a damaged pickle raises is anybody's guess
            raise AdvUnlearnError(f"the state in {self.folder} cannot be read ({error}); start the run anew") from error
        difference = first_difference(state["settings"], settings, ignored=FREE)
        if difference:
            raise AdvUnlearnError(
                f"the state in {self.folder} is of a run with other settings: {difference}; give the same ones, or "
                "start the run anew in another folder"
            )
        return state, {name: {**tensors, **state["counters"][name]} for name, tensors in bank.items()}

    def remove(self) -> None:
        """Delete the state and its bank."""
        for path in (self.folder / STATE, *self.folder.glob(BANK.format("*")), *self.folder.glob("*" + PARTIAL)):
            path.unlink(missing_ok=True)


class RunState:
    """All that a run changes, and what makes it go on exactly: weights, optimiser, random draws, banks, history.

    Args:
        parameters: what trains.
        adam: its optimiser.
        banks: the trajectories it draws from.
        generator: source of its own draws.
        processes: all have the same state but for the banks, which are gathered to be saved.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        adam: torch.optim.Optimizer,
        banks: Banks,
        generator: torch.Generator,
        processes: Processes = SINGLE,
    ) -> None:
        self.parameters, self.adam, self.banks, self.processes = parameters, adam, banks, processes
        self.generators = [generator, *(bank.generator for bank in banks.all().values())]
        self.history: list[dict[str, float]] = []
        self.saved: int | None = None  # how many iterations the last state has
        self.latest: dict[str, Tensor] | None = None  # what each adversary found last
        self.settings: dict[str, Any] = {}
        self.mark: dict[str, Any] = {}
        self.stepping = False
        self.good: list[Tensor] = []  # the last weights whose gradient was finite, and the iterations that led there
        self.good_iterations = 0
        self.undo: dict[str, Any] | None = None  # the optimiser at the start of an iteration of several steps
        self.run = uuid.uuid4().hex[:12]  # one folder may see several runs: a bank belongs to one of them

    def begin(self) -> None:
        """Begin an iteration: note where the random draws stand, then renew what the banks have used up.

        Sampled again from the same mark, the renewed rows come out the same: an interrupted iteration is repeated.
        """
        self.note()
        for bank in self.banks.all().values():
            bank.refresh()

    def step(self, row: dict[str, float]) -> None:
        """Take the optimiser's step; an interrupt in the middle of it is not to be kept."""
        self.stepping = True
        self.adam.step()
        self.history.append(row)
        self.note()
        self.stepping, self.undo = False, None

    def keep_good(self) -> None:
        """Keep the weights to return to when a loss is not finite."""
        self.good = self.good or [torch.empty_like(p) for p in self.parameters]
        torch._foreach_copy_(self.good, [p.detach() for p in self.parameters])
        self.good_iterations = len(self.history)

    def go_back(self) -> None:
        """Return to the weights that were kept."""
        torch._foreach_copy_([p.data for p in self.parameters], self.good)

    def step_apart(self) -> None:
        """Take a step that is not an iteration's last; what interrupts the iteration then goes back to its start."""
        self.undo = self.undo or tree_map_only(Tensor, torch.clone, self.adam.state_dict())
        self.stepping = True
        self.adam.step()
        self.stepping = False

    def note(self) -> None:
        """Note where the random draws stand."""
        self.mark = {
            "generators": [g.get_state() for g in self.generators],
            "counters": self.banks.counters(),
            "latest": self.latest,
        }

    @contextlib.contextmanager
    def kept(self, checkpoints: Checkpoints | None) -> Iterator[None]:
        """Save a run's beginning, its end, and the last whole iteration when all but a diverged loss interrupts it.

        One of several processes that is interrupted does not save: the others may be anywhere, and send it nothing.
        """
        if checkpoints and not self.history and self.banks.concept.keeps:  # filling it may have taken long
            self.note()
            self.save(checkpoints)
        try:
            yield
        except TrainingDiverged:
            if checkpoints and self.saved == 0 and self.processes.main:
                checkpoints.remove()  # from the start it would only diverge again
            raise
        except BaseException:
            if checkpoints and self.mark and not self.stepping and self.processes.count == 1:
                if self.undo is not None:
                    self.go_back()
                    self.adam.load_state_dict(self.undo)
                self.save(checkpoints)
            raise
        if checkpoints:
            self.save(checkpoints)

    def save(self, checkpoints: Checkpoints) -> None:
        """Write the state at the last mark."""
        self.saved = len(self.history)
        state = {
            "run": self.run,
            "settings": self.settings,
            "history": self.history,
            "adam": self.adam.state_dict(),
            "parameters": [p.detach() for p in self.parameters],
            **self.mark,
        }
        version = "-".join([self.run, *(str(bank.sampled) for bank in self.banks.all().values())])
        tensors = self.banks.tensors()
        if self.processes.main:
            checkpoints.save(state, tensors, version)
        self.processes.agreed(False)  # nobody goes on before it is written

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state; the banks have theirs already."""
        torch._foreach_copy_([p.data for p in self.parameters], state["parameters"])
        self.adam.load_state_dict(state["adam"])
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)
        self.history, self.latest, self.run = list(state["history"]), state["latest"], state["run"]
        self.note()  # a run that has no iteration left is saved as it was
