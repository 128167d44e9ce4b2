"""The folder of a training run: settings, log, losses, sample images, trackers, result."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.io import OutputConfig
from ..errors import AdvUnlearnError
from ..files import DONE, SNAPSHOTS, write_atomic
from ..reporting import charts, images
from ..reporting.report import LOSSES, write_json
from ..reporting.training_samples import Samples
from ..training.checkpoint import Checkpoints
from ..training.events import Progress
from .config_file import NAME as CONFIG
from .trackers import Trackers, parse_trackers

LOG, LOSS, RETAINED, SAMPLES = "log.jsonl", "loss.svg", "retain.txt", "samples"
History = Sequence[Mapping[str, float]]


class Log:
    """The log file: one JSON line per iteration.

    It follows the history of the run: lines that are not in the history are removed, and missing ones are written.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.lines = -1  # number of lines in the file; -1 before it was checked

    def write(self, history: History, seconds: float) -> None:
        """Add the last iteration of a history, and the seconds it took."""
        if self.lines != len(history) - 1:
            self.repair(history[:-1])
        with self.path.open("ab") as file:
            file.write(_line(len(history), history[-1], seconds))
        self.lines = len(history)

    def repair(self, history: History) -> None:
        """Make the file hold the iterations of a history, once each; correct lines stay as they are."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        lines += [b""] * (len(history) - len(lines))
        rows = enumerate(zip(lines, history, strict=False), 1)
        correct = (line if _parse(line) == {"iteration": i, **row} else _line(i, row) for i, (line, row) in rows)
        write_atomic(self.path, b"".join(correct))
        self.lines = len(history)


def _line(iteration: int, row: Mapping[str, float], seconds: float | None = None) -> bytes:
    time = {} if seconds is None else {"seconds": round(seconds, 3)}
    return (json.dumps({"iteration": iteration, **row, **time}) + "\n").encode()


def _parse(line: bytes) -> dict[str, object] | None:
    """Return the iteration and losses of a line; None for an incomplete line."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return {k: v for k, v in values.items() if k != "seconds"} if isinstance(values, dict) else None


def draw_losses(history: History) -> str:
    """Draw the losses of all iterations as an SVG file."""
    names = [name for name in LOSSES if any(name in row for row in history)]
    series = {
        name.replace("_", " "): [
            (float(i), charts.finite_number(row[name])) for i, row in enumerate(history, 1) if name in row
        ]
        for name in names
    }
    return charts.draw_svg_file("Training losses", series, "iteration")


class RunFolder:
    """A callback of `train` that keeps the run folder up to date.

    Nothing is written before the first report of the trainer, so a run that is refused leaves the folder unchanged.

    Args:
        folder: the run folder.
        output: what to save, and how often.
        config: the content of `config.json`.
        retained: the retained prompts.
        samples: generates the sample images; None for no images.
        resume: whether the run resumes the one in the folder.

    Raises AdvUnlearnError for a folder with an unfinished run that is not resumed, and for a tracker that is not
    installed.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        output: OutputConfig,
        config: Mapping[str, object],
        retained: Sequence[str],
        samples: Samples | None,
        resume: bool,
    ) -> None:
        self.folder = folder
        self.output = output
        self.config = config
        self.retained = retained
        self.samples = samples
        self.resume = resume
        self.checkpoints = Checkpoints(folder, output.checkpoint_every)
        self.log = Log(folder / LOG)
        self.trackers = Trackers(parse_trackers(output.tracker), folder)
        self.started = False
        self.iteration_start = time.perf_counter()
        self.history: History = ()
        if not resume and self.checkpoints.exists() and not (folder / DONE).is_file():
            raise AdvUnlearnError(
                f"{folder} holds an unfinished run; give --resume to resume it, or another --out for a new run"
            )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        """Draw the losses so far and end the trackers, however the run ends."""
        self.write_losses()
        self.trackers.finish()

    def __call__(self, progress: Progress) -> None:
        """Handle a report of the trainer."""
        if not self.started:
            self.start()
        if not self.folder.is_dir():
            raise AdvUnlearnError(
                f"{self.folder} was deleted during the run; the run's state is saved there again: resume it with "
                "--resume, and leave the folder in place"
            )
        if progress.phase != "train":
            if progress.phase == "bank":
                self.iteration_start = time.perf_counter()
            return
        self.history = progress.history
        self.log.write(self.history, time.perf_counter() - self.iteration_start)
        self.trackers.log(progress.losses, progress.iteration)
        if progress.iteration % self.output.checkpoint_every == 0:
            self.write_losses()
        last = progress.iteration == progress.iterations
        if self.samples and (last or progress.iteration % self.output.sample_every == 0):
            self.write_samples(self.samples, progress.iteration, progress.encoder, progress.denoiser)
        self.iteration_start = time.perf_counter()

    def start(self) -> None:
        """Write the settings; a new run removes the files of an earlier one, except its encoder."""
        self.started = True
        self.trackers.start(self.config)
        (self.folder / DONE).unlink(missing_ok=True)
        if not self.resume:
            self.checkpoints.remove()
            made = ((SAMPLES, "*.png"), (SNAPSHOTS, "*.safetensors"), (SNAPSHOTS, "*.json"))
            earlier = [path for folder, pattern in made for path in (self.folder / folder).glob(pattern)]
            for path in (self.folder / LOG, self.folder / LOSS, *earlier):
                path.unlink(missing_ok=True)
        write_json(self.folder / CONFIG, self.config)
        write_atomic(self.folder / RETAINED, "".join(f"{prompt}\n" for prompt in self.retained).encode())
        if self.samples and not self.resume:
            self.write_samples(self.samples, 0, self.samples.model.text_encoder, self.samples.model.denoiser)

    def write_losses(self) -> None:
        """Write the chart of the losses."""
        if self.history:
            write_atomic(self.folder / LOSS, draw_losses(self.history).encode())

    def write_samples(self, samples: Samples, iteration: int, encoder: Any, denoiser: Any) -> None:
        """Write the sample images after an iteration."""
        path = self.folder / SAMPLES / f"{iteration:06}.png"
        write_atomic(path, images.png(samples.draw(encoder, denoiser)))

    def finish(self, history: History, result: Mapping[str, object]) -> None:
        """Write the result, which marks the run as finished."""
        self.history = history
        self.log.repair(history)
        self.write_losses()
        write_json(self.folder / DONE, result)
