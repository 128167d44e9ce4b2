"""Resume a training run in the graph: the stored settings count, and the node says which of its own it ignores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..advunlearn.config.training import RunConfig
from .status import Status

if TYPE_CHECKING:
    from ..advunlearn.training.checkpoint import Checkpoints
    from ..advunlearn.training.stored_run import StoredRun


def find_run(checkpoints: Checkpoints, status: Status, name: str) -> StoredRun | None:
    """Return the saved run of a name. If there is none, say so on the node: the run starts from the beginning.

    A run that was cancelled while its bank was filled has no saved state.
    """
    from ..advunlearn.training.stored_run import read_stored_run

    stored = read_stored_run(checkpoints)
    if stored is None:
        status.note = f"nothing to resume in {name}: training starts from the beginning"
        logging.warning("AdvUnlearn: %s", status.note)
    return stored


def describe_ignored(stored: StoredRun, run: RunConfig, prompts: Sequence[str], resolution: int) -> str:
    """Return one line: what the node's own settings would have changed in a resumed run."""
    ignored = stored.find_ignored(run, prompts, resolution)
    done = f"resumed at {len(stored.history)} with the stored settings"
    return f"{done}; ignored: {', '.join(ignored)}" if ignored else done
