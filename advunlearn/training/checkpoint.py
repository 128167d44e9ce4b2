"""The state of a run on disk: a cancelled or killed run resumes and ends with bit-identical weights."""

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
from ..config.renamed import with_current_names
from ..errors import AdvUnlearnError, TrainingDiverged
from ..files import PARTIAL, STATE, compute_digest, write_atomic
from ..formats.tensors import hash_tree
from .bank import Banks
from .distributed import SINGLE, Processes

BANK = "bank-{}.pt"
FORMAT = 2  # of the state file; raised when its content changes
# A resumed run may have other values of these.
FREE_SETTINGS = ("iterations", "checkpointing", "micro_batch", "offload")


class Checkpoints:
    """The states of one run in a folder: `state.pt`, and the trajectory banks that it names.

    Files are written under a temporary name and then renamed. The banks are large and change rarely: they are written
    first, and only if they changed. So whenever a run is killed, `state.pt` and the file it names are complete.

    Args:
        folder: the run's folder; it is created when something is saved.
        every: save every N iterations. A run also saves before its first iteration, and when it is interrupted.
    """

    def __init__(self, folder: str | pathlib.Path, every: int = 50) -> None:
        self.folder = pathlib.Path(folder)
        self.every = every
        self._bank_digest: dict[str, str] = {}  # of the last bank file, by its name

    def save(self, state: Mapping[str, Any], banks: Mapping[str, Any], version: str) -> None:
        """Write a state and, if their version is new, the banks; delete the banks that no state names."""
        path = self.folder / BANK.format(version)
        if not path.exists():
            write_atomic(path, lambda file: torch.save(banks, file))
        if path.name not in self._bank_digest:
            self._bank_digest = {path.name: compute_digest(path)}
        content = {**state, "format": FORMAT, "bank": path.name, "bank_sha256": self._bank_digest[path.name]}
        content["sha256"] = hash_tree(content)
        write_atomic(self.folder / STATE, lambda file: torch.save(content, file))
        for other in self.folder.glob(BANK.format("*")):
            if other != path:
                other.unlink()

    def exists(self) -> bool:
        """Return whether there is a state to resume."""
        return (self.folder / STATE).is_file()

    def load(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the state and the banks' states.

        Raises AdvUnlearnError if there is no state, it cannot be read, or it belongs to a run with other settings.
        """
        if not self.exists():
            raise AdvUnlearnError(f"{self.folder} holds no {STATE} to resume; start the run without resume")
        try:
            state = torch.load(self.folder / STATE, weights_only=True)
            self._require_intact(state)
            banks = torch.load(self.folder / state["bank"], weights_only=True)
        except AdvUnlearnError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise AdvUnlearnError(
                f"the state in {self.folder} cannot be read ({error}); start the run again without resume"
            ) from error
        if state.get("format") != FORMAT:
            raise AdvUnlearnError(
                f"the state in {self.folder} was written by another version of advunlearn; resume it with that one, or "
                "start the run again without resume"
            )
        difference = first_difference(with_current_names(state["settings"]), settings, ignored=FREE_SETTINGS)
        if difference:
            raise AdvUnlearnError(
                f"the state in {self.folder} belongs to a run with other settings: {difference}; give the same ones, "
                "or start a new run in another folder"
            )
        return state, {name: {**tensors, **state["counters"][name]} for name, tensors in banks.items()}

    def _require_intact(self, state: dict[str, Any]) -> None:
        """Raise AdvUnlearnError if the state or its bank have another SHA-256 than was saved; old states have none."""
        digest = state.pop("sha256", None)
        bank = self.folder / state["bank"]
        damaged = [self.folder / STATE] if digest is not None and hash_tree(state) != digest else []
        if state.get("bank_sha256", "") not in ("", compute_digest(bank)):
            damaged.append(bank)
        if damaged:
            raise AdvUnlearnError(
                f"{damaged[0]} is damaged: its SHA-256 is not the one that was saved; a run resumed from it would end "
                "with other weights: start the run again without resume"
            )

    def remove(self) -> None:
        """Delete the state and its banks."""
        for path in (self.folder / STATE, *self.folder.glob(BANK.format("*")), *self.folder.glob("*" + PARTIAL)):
            path.unlink(missing_ok=True)


class RunState:
    """Everything that changes during a run: weights, optimiser, random generators, banks, adversaries, history.

    Args:
        parameters: the trained parameters.
        adam: their optimiser.
        banks: the sources of samples.
        generator: source of the run's own draws.
        processes: all have the same state except for the banks, which are gathered for saving.
        offload: keep the last good weights on the CPU.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        adam: torch.optim.Optimizer,
        banks: Banks,
        generator: torch.Generator,
        processes: Processes = SINGLE,
        offload: bool = False,
    ) -> None:
        self.parameters = parameters
        self.offload = offload
        self.adam = adam
        self.banks = banks
        self.processes = processes
        self.generators = [generator, *(bank.generator for bank in banks.by_name().values())]
        self.history: list[dict[str, float]] = []
        self.adversarial: dict[str, dict[str, Tensor]] = {}  # the last state of each adversary, by its name
        self.settings: dict[str, Any] = {}
        self.saved_iterations: int | None = None  # in the last saved state
        self.iteration_start: dict[str, Any] = {}
        self.stepping = False  # inside an optimiser step, whose half is never saved
        self.good_weights: list[Tensor] = []  # the last ones whose gradient was finite
        self.good_iterations = 0
        self.adam_before: dict[str, Any] | None = None  # at the start of an iteration of several steps
        self.run = uuid.uuid4().hex[:12]  # several runs may use one folder in turn; a bank belongs to one of them

    def start_iteration(self) -> None:
        """Take a snapshot of the random generators, then let the banks replace what was drawn often enough.

        Sampled again from the same snapshot, the replaced rows are the same: an interrupted iteration is repeated.
        """
        self.snapshot()
        for bank in self.banks.by_name().values():
            bank.refresh()

    def step(self, row: dict[str, float]) -> None:
        """Take the optimiser's step and end the iteration with its losses."""
        self.stepping = True
        self.adam.step()
        self.history.append(row)
        self.snapshot()
        self.stepping = False
        self.adam_before = None

    def extra_step(self) -> None:
        """Take a step that is not the iteration's last; an interruption then returns to the iteration's start."""
        if self.adam_before is None:
            self.adam_before = tree_map_only(Tensor, torch.clone, self.adam.state_dict())
        self.stepping = True
        self.adam.step()
        self.stepping = False

    def keep_good_weights(self) -> None:
        """Copy the weights, to return to them if a loss is not finite."""
        if not self.good_weights:
            self.good_weights = [torch.empty_like(p, device="cpu" if self.offload else None) for p in self.parameters]
        torch._foreach_copy_(self.good_weights, [p.detach() for p in self.parameters])
        self.good_iterations = len(self.history)

    def rollback(self) -> None:
        """Return to the last good weights."""
        torch._foreach_copy_([p.data for p in self.parameters], self.good_weights)

    def snapshot(self) -> None:
        """Note the state of the random generators, the banks and the adversaries."""
        self.iteration_start = {
            "generators": [g.get_state() for g in self.generators],
            "counters": self.banks.counters(),
            "adversarial": dict(self.adversarial),
        }

    @contextlib.contextmanager
    def checkpoint_on_exit(self, checkpoints: Checkpoints | None) -> Iterator[None]:
        """Save at the start and at the end of a run, and, if it is interrupted, its last complete iteration.

        A run that diverged is not saved. If one of several processes is interrupted it does not save: the others may be
        anywhere, and send it nothing.
        """
        if checkpoints and not self.history and self.banks.concept.prefilled:  # filling the bank may have taken long
            self.snapshot()
            self.save(checkpoints)
        try:
            yield
        except TrainingDiverged:
            if checkpoints and self.saved_iterations == 0 and self.processes.main:
                checkpoints.remove()  # resumed from the start it would diverge again
            raise
        except BaseException:
            if checkpoints and self.iteration_start and not self.stepping and self.processes.count == 1:
                if self.adam_before is not None:
                    self.rollback()
                    self.adam.load_state_dict(self.adam_before)
                self.save(checkpoints)
            raise
        if checkpoints:
            self.save(checkpoints)

    def save(self, checkpoints: Checkpoints) -> None:
        """Write the state at the last snapshot."""
        self.saved_iterations = len(self.history)
        state = {
            "run": self.run,
            "settings": self.settings,
            "history": self.history,
            "adam": self.adam.state_dict(),
            "parameters": [p.detach() for p in self.parameters],
            **self.iteration_start,
        }
        sampled = [str(counters["n_sampled"]) for counters in self.banks.counters().values()]
        tensors = self.banks.tensors()
        if self.processes.main:
            checkpoints.save(state, tensors, "-".join([self.run, *sampled]))
        self.processes.any_rank(False)  # all wait until it is written

    def restore(self, state: Mapping[str, Any]) -> None:
        """Return to a saved state; the banks were restored when they were made."""
        torch._foreach_copy_([p.data for p in self.parameters], state["parameters"])
        self.adam.load_state_dict(state["adam"])
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)
        self.history = list(state["history"])
        self.adversarial = dict(state["adversarial"])
        self.run = state["run"]
        self.snapshot()  # a run without iterations left is saved as it was
