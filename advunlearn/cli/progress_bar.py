"""Progress bars on stderr."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from ..training.events import Progress


class Bar:
    """A progress bar that follows the phases of a run."""

    def __init__(self, title: str) -> None:
        self.title, self.phase = title, ""
        self.bar: Any = None

    def update(self, phase: str, done: int, total: int, **values: float) -> None:
        """Show `done` of `total` in a phase; a new phase gets a new bar."""
        if phase != self.phase or self.bar is None or self.bar.total != total:
            self.close()
            self.phase = phase
            self.bar = tqdm(total=total, desc=f"{self.title}: {phase}", file=sys.stderr, leave=False)
        self.bar.update(done - self.bar.n)
        if values:
            self.bar.set_postfix({k: f"{v:.4f}" for k, v in values.items()}, refresh=False)

    def training(self, progress: Progress) -> None:
        """Show a training run; attack steps move no bar, iterations do."""
        if progress.phase != "attack":
            self.update(progress.phase, progress.iteration, progress.iterations, **progress.losses)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
