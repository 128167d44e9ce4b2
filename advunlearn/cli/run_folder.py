"""What a training run leaves in its folder beside its state and its encoder."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.training import RunConfig
from ..errors import AdvUnlearnError
from ..files import DONE, write_atomic
from ..reporting import charts
from ..reporting import images as pictures
from ..reporting.report import LOSSES, write_json
from ..reporting.training_samples import Samples
from ..training.checkpoint import Checkpoints
from ..training.events import Progress
from .config_file import NAME as CONFIG
from .trackers import Trackers, names_of

LOG, LOSS, RETAINED, SAMPLES = "log.jsonl", "loss.svg", "retain.txt", "samples"
History = Sequence[Mapping[str, float]]


class Log:
    """One JSON line an iteration. The run's history decides: lines that it lacks are cut, lost ones are written."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.lines = path, -1

    def write(self, history: History, seconds: float) -> None:
        """Add the last iteration of a history, and what it took."""
        if self.lines != len(history) - 1:
            self.mend(history[:-1])
        with self.path.open("ab") as file:
            file.write(_line(len(history), history[-1], seconds))
        self.lines = len(history)

    def mend(self, history: History) -> None:
        """Let the file hold the iterations of a history, each once; lines that are right stay as they are."""
        found = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        found += [b""] * (len(history) - len(found))
        rows = enumerate(zip(found, history, strict=False), 1)
        right = (line if _values(line) == {"iteration": i, **row} else _line(i, row) for i, (line, row) in rows)
        write_atomic(self.path, b"".join(right))
        self.lines = len(history)


def _line(iteration: int, row: Mapping[str, float], seconds: float | None = None) -> bytes:
    took = {} if seconds is None else {"seconds": round(seconds, 3)}
    return (json.dumps({"iteration": iteration, **row, **took}) + "\n").encode()


def _values(line: bytes) -> Any:
    """Return what a line says of the run; None for half a line."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return {k: v for k, v in values.items() if k != "seconds"} if isinstance(values, dict) else None


def loss_picture(history: History) -> str:
    """Return the losses of all iterations as an SVG file."""
    names = [name for name in LOSSES if any(name in row for row in history)]
    series = {
        name.replace("_", " "): [
            (float(i), charts.number(row[name])) for i, row in enumerate(history, 1) if name in row
        ]
        for name in names
    }
    return charts.svg_file("Training losses", series, "iteration")


class RunFolder:
    """A callback of `train` that keeps the run's folder up to date.

    Nothing is written before the run's first report, so a run that is refused leaves the folder as it is.

    Args:
        folder: the run's.
        run: what to keep, and how often.
        config: the content of `config.json`.
        retained: the retained prompts.
        samples: draws pictures now and then; None for none.
        resume: whether the run goes on with what is in the folder.

    Raises AdvUnlearnError for a folder with a run that is not finished, unless that goes on, and for a tracker that is
    not there.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        run: RunConfig,
        config: Mapping[str, Any],
        retained: Sequence[str],
        samples: Samples | None,
        resume: bool,
    ) -> None:
        self.folder, self.run, self.config, self.retained, self.samples = folder, run, config, retained, samples
        self.checkpoints, self.resume = Checkpoints(folder, run.checkpoint_every), resume
        self.log, self.trackers = Log(folder / LOG), Trackers(names_of(run.tracker), folder)
        self.begun, self.since = False, time.perf_counter()
        self.history: History = ()
        if not resume and self.checkpoints.exists() and not (folder / DONE).is_file():
            raise AdvUnlearnError(
                f"{folder} keeps a run that is not finished; give --resume to go on with it, or another --out to begin "
                "anew"
            )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        """However the run ends: draw its losses as far as it came, and end the trackers."""
        self.draw_losses()
        self.trackers.finish()

    def __call__(self, progress: Progress) -> None:
        """Take a report of the trainer."""
        if not self.begun:
            self.begin()
        if progress.phase != "train":
            if progress.phase == "bank":
                self.since = time.perf_counter()
            return
        self.history = progress.history
        self.log.write(self.history, time.perf_counter() - self.since)
        self.trackers.log(progress.losses, progress.iteration)
        if progress.iteration % self.run.checkpoint_every == 0:
            self.draw_losses()
        done = progress.iteration == progress.iterations
        if self.samples and (done or progress.iteration % self.run.sample_every == 0):
            self.draw_samples(progress.iteration, progress.encoder, progress.denoiser)
        self.since = time.perf_counter()

    def begin(self) -> None:
        """Write what the run is; one that does not go on drops what another left here, but for its encoder."""
        self.begun = True
        self.trackers.start(self.config)
        (self.folder / DONE).unlink(missing_ok=True)
        if not self.resume:
            self.checkpoints.remove()
            for path in (self.folder / LOG, self.folder / LOSS, *(self.folder / SAMPLES).glob("*.png")):
                path.unlink(missing_ok=True)
        write_json(self.folder / CONFIG, self.config)
        write_atomic(self.folder / RETAINED, "".join(f"{prompt}\n" for prompt in self.retained).encode())
        if self.samples and not self.resume:
            self.draw_samples(0, self.samples.model.text_encoder, self.samples.model.denoiser)

    def draw_losses(self) -> None:
        """Write the picture of the losses."""
        if self.history:
            write_atomic(self.folder / LOSS, loss_picture(self.history).encode())

    def draw_samples(self, iteration: int, encoder: Any, denoiser: Any) -> None:
        """Write what the model draws after an iteration."""
        assert self.samples is not None
        path = self.folder / SAMPLES / f"{iteration:06}.png"
        write_atomic(path, pictures.png(self.samples.draw(encoder, denoiser)))

    def finish(self, history: History, result: Mapping[str, Any]) -> None:
        """Write, last of all, what the run came to."""
        self.history = history
        self.log.mend(history)
        self.draw_losses()
        write_json(self.folder / DONE, result)
