"""Progress and previews on a node while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..advunlearn.config.evaluation import EvaluateConfig
from ..advunlearn.config.training import RunConfig
from ..advunlearn.reporting import training_samples as samples
from ..advunlearn.reporting.images import grid
from ..advunlearn.reporting.progress_text import ProgressText
from ..advunlearn.reporting.snapshots import Snapshots
from ..advunlearn.training.events import Progress, TrainResult
from ..advunlearn.training.official import source_class
from ..advunlearn.training.schedule import Schedule
from .host import Bar, HostModel
from .status import Status

SIZE, LEFT, PAD = (512, 288), 72, 32
TEXT = 18  # font size in pixels: a node shows the image at little more than half its size
SIDE = 128  # width and height of a sample image
COLOURS = {"loss": "#4c9be8", "erase": "#e8a04c", "retain": "#5fbf77", "attack_end": "#d46a9f"}
Rows = Mapping[int, Mapping[str, float]]  # iteration -> losses


class Training:
    """Callback of a training run: the bar counts trajectories, attack steps and iterations, the image plots losses.

    Args:
        status: the node's text.
        run: the settings.
        has_retain_prompts: whether there is a second bank.
    """

    every = 5  # iterations between two images

    def __init__(self, status: Status, run: RunConfig, has_retain_prompts: bool) -> None:
        retains = run.train.retains and has_retain_prompts
        trajectories = run.bank.trajectories + (run.bank.retain_trajectories if retains else 0)
        self.bank = trajectories if source_class(run.train).prefilled else 0
        self.attack_steps = run.attack.in_mode(run.train.mode).all_steps if run.train.attacks else 0
        self.schedule = Schedule.from_config(run)
        self.status = status
        self.text = ProgressText(run, self.bank)
        self.bar = Bar(self.units(run.train.iterations), status.node_id)
        self.iteration, self.iterations = 0, run.train.iterations
        self.started = False  # the banks are full; from now on a cancelled run is kept
        self.history: Sequence[Mapping[str, float]] = ()  # losses of every iteration, also before a resume
        self.samples: Samples | None = None
        self.snapshots: Snapshots | None = None

    def units(self, iterations: int, attack_step: int = 0) -> int:
        """Return the bar's value after `iterations` iterations and `attack_step` steps of the next attack."""
        attack_steps = self.schedule.attacks_before(iterations) * self.attack_steps
        return self.bank + iterations + attack_steps + attack_step

    def resume(self, history: Sequence[Mapping[str, float]]) -> None:
        """Continue the curve of an earlier run."""
        self.history, self.iteration, self.started = history, len(history), True

    def start(self, samples: Samples) -> None:
        """Show the sample images of the original model."""
        self.samples = samples
        self.status.show("sampling the original model")
        samples.generate(0, samples.model.text_encoder)
        self.bar.update(0, self.picture())

    def __call__(self, progress: Progress) -> None:
        """Update the text and the bar and, every few iterations, the image."""
        self.status.update(self.text(progress))
        self.started = progress.phase != "bank"
        if progress.phase == "bank":
            self.bar.update(self.text.filled)
        elif progress.phase == "attack":
            self.iteration = progress.iteration
            self.bar.update(self.units(progress.iteration, progress.attack_step))
        else:
            self._show_iteration(progress)
            if self.snapshots is not None:
                self.snapshots(progress)
            self.text.skip()

    def _show_iteration(self, progress: Progress) -> None:
        i = self.iteration = progress.iteration
        self.history = progress.history
        last = i == progress.iterations
        new = self.samples is not None and self.samples.are_due(i, last)
        if new:
            self.samples.generate(i, progress.encoder)  # type: ignore[union-attr]
        drawn = new or last or i % self.every == 0 or i == 2  # two points are the first curve
        self.bar.update(self.units(i), self.picture() if drawn else None)

    def picture(self) -> Any:
        """Return a PIL image: the loss curves above the sample images."""
        image = curve(dict(enumerate(self.history, start=1)), self.iterations)
        return image if self.samples is None else self.samples.under(image)

    def compare_snapshots(self, result: TrainResult, name: str) -> list[str]:
        """Measure the trained encoder, saved under a name, like the intermediate ones; return lines for the report."""
        if self.snapshots is None:
            return []
        self.status.show("comparing the intermediate encoders")
        self.snapshots.add(result.iterations, name, result.encoder, result.denoiser)
        return [self.snapshots.describe()]

    def describe_stop(self, name: str) -> str:
        """Return what the node says after a cancel, whose state is kept under a name."""
        if not self.started:
            return "stopped before the first iteration; nothing is kept"
        return f"stopped at {self.iteration} of {self.iterations}, kept in {name}; turn on resume to go on"


class Samples(samples.Samples):
    """Sample images of the original and of the current encoder, for the concept and for a retained prompt."""

    def __init__(self, model: HostModel, concept: str, retained: Sequence[str], every: int) -> None:
        super().__init__(model, [concept, *retained[:1]], EvaluateConfig(sampling_steps=12, guidance_scale=5.0))
        self.every = every
        self.strips: dict[int, Any] = {}  # iteration -> a row of images: the first, and the last

    def are_due(self, iteration: int, last: bool) -> bool:
        """Return whether to generate images after an iteration."""
        return last or iteration % self.every == 0

    def generate(self, iteration: int, encoder: Any) -> None:
        """Generate the images of an encoder after an iteration; 0 is the original model."""
        latents = self.latents(encoder, self.model.denoiser)
        strip = grid(self.model.look(latents), len(latents), gap=0)  # type: ignore[attr-defined]
        self.strips = {i: row for i, row in self.strips.items() if i == 0}
        self.strips[iteration] = strip.resize((SIDE * len(latents), SIDE))

    def under(self, image: Any) -> Any:
        """Return an image with the samples below it, a row for each iteration."""
        from PIL import Image, ImageDraw

        head = TEXT + 8
        both = Image.new("RGB", (image.width, image.height + (SIDE + head) * len(self.strips)), "#202020")
        both.paste(image)
        draw = ImageDraw.Draw(both)
        y = image.height
        for iteration, strip in self.strips.items():
            for k, prompt in enumerate(self.prompts):
                text = f"{iteration}: {prompt}" if iteration else f"before: {prompt}"
                draw.text((2 + k * samples.COUNT * SIDE, y + 2), text[:28], fill="#c0c0c0", font=font())
            both.paste(strip, (0, y + head))
            y += SIDE + head
        return both


def font() -> Any:
    """Return Pillow's built-in font, which needs no file."""
    from PIL import ImageFont

    return ImageFont.load_default(TEXT)


def curve(rows: Rows, total: int) -> Any:
    """Plot the losses over the iterations as a PIL image."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", SIZE, "#202020")
    draw = ImageDraw.Draw(image)
    width, height = SIZE
    names = [name for name in COLOURS if any(name in row for row in rows.values())]
    top = max((row[name] for row in rows.values() for name in names if name in row), default=0.0) or 1.0

    def position(i: int, value: float) -> tuple[float, float]:
        return LEFT + (width - LEFT - PAD) * i / max(1, total), height - PAD - (height - 2 * PAD) * value / top

    for share in (0.0, 0.5, 1.0):
        y = position(0, share * top)[1]
        draw.line([(LEFT, y), (width - PAD, y)], fill="#404040")
        draw.text((LEFT - 8, y), f"{share * top:.3g}", fill="#c0c0c0", font=font(), anchor="rm")
    count = f"iteration {max(rows, default=0)} of {total}"
    draw.text((width - PAD, height - PAD + 4), count, fill="#c0c0c0", font=font(), anchor="ra")
    for k, name in enumerate(names):
        points = [position(i, row[name]) for i, row in rows.items() if name in row]
        if len(points) > 1:
            draw.line(points, fill=COLOURS[name], width=2)
        draw.text((LEFT + 100 * k, 4), name.removesuffix("_end"), fill=COLOURS[name], font=font())
    return image
