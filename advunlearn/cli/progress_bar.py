"""Progress bars on stderr."""

from __future__ import annotations

import sys
from typing import NoReturn

from tqdm import tqdm

from ..training.events import Progress


class ProgressBar:
    """A progress bar with one phase after another.

    Args:
        title: shown in front of every phase.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.phase = ""
        self.bar: tqdm[NoReturn] | None = None

    def update(self, phase: str, done: int, total: int, **values: float) -> None:
        """Show `done` of `total` in a phase; a new phase starts a new bar."""
        if phase != self.phase or self.bar is None or self.bar.total != total:
            self.close()
            self.phase = phase
            self.bar = tqdm(total=total, desc=f"{self.title}: {phase}", file=sys.stderr, leave=False)
        self.bar.update(done - self.bar.n)
        if values:
            self.bar.set_postfix({k: f"{v:.4f}" for k, v in values.items()}, refresh=False)

    def show_training(self, progress: Progress) -> None:
        """Show the iterations of a training run; the steps of an attack do not move the bar."""
        if progress.phase != "attack":
            self.update(progress.phase, progress.iteration, progress.iterations, **progress.losses)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
