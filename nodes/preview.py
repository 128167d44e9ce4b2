"""Progress and previews on a node while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..advunlearn.config.evaluation import EvaluateConfig
from ..advunlearn.config.training import RunConfig
from ..advunlearn.reporting import training_samples as samples
from ..advunlearn.reporting.images import grid
from ..advunlearn.training.events import Progress
from ..advunlearn.training.official import source_class
from ..advunlearn.training.schedule import Schedule
from .host import Bar, HostModel

SIZE, LEFT, PAD = (512, 288), 72, 32
TEXT = 18  # font size in pixels: a node shows the image at little more than half its size
SIDE = 128  # width and height of a sample image
COLOURS = {"loss": "#4c9be8", "erase": "#e8a04c", "retain": "#5fbf77", "attack_end": "#d46a9f"}
Rows = Mapping[int, Mapping[str, float]]  # iteration -> losses


class Training:
    """Callback of a training run: the bar counts trajectories, attack steps and iterations, the image plots losses."""

    every = 5  # iterations between two images

    def __init__(self, node_id: str | None, run: RunConfig, has_retain_prompts: bool) -> None:
        retains = run.train.retains and has_retain_prompts
        trajectories = run.bank.trajectories + (run.bank.retain_trajectories if retains else 0)
        self.bank = trajectories if source_class(run.train).prefilled else 0
        self.attack_steps = run.attack.in_mode(run.train.mode).all_steps if run.train.attacks else 0
        self.schedule = Schedule.from_config(run)
        self.bar = Bar(self.units(run.train.iterations), node_id)
        self.rows: dict[int, Mapping[str, float]] = {}
        self.samples: Samples | None = None
        self.filled, self.total, self.before = 0, 0, 0

    def units(self, iterations: int, attack_step: int = 0) -> int:
        """Return the bar's value after `iterations` iterations and `attack_step` steps of the next attack."""
        attack_steps = self.schedule.attacks_before(iterations) * self.attack_steps
        return self.bank + iterations + attack_steps + attack_step

    def __call__(self, progress: Progress) -> None:
        """Update the bar and, every few iterations, the image."""
        if progress.phase == "bank":
            if self.filled == self.total:  # the retain bank starts to count from 0
                self.before += self.filled
            self.filled, self.total = progress.iteration, progress.iterations
            self.bar.update(self.before + self.filled)
            return
        done = self.units(progress.iteration, progress.attack_step)
        if progress.phase == "attack":
            self.bar.update(done)
            return
        self.rows[progress.iteration] = progress.losses
        new = self.samples is not None and self.samples.follow(progress)
        draw = new or progress.iteration % self.every == 0 or progress.iteration == progress.iterations
        self.bar.update(done, self.picture(progress.iterations) if draw else None)

    def picture(self, iterations: int) -> Any:
        """Return a PIL image: the loss curves above the sample images."""
        image = curve(self.rows, iterations)
        return image if self.samples is None else self.samples.under(image)


class Samples(samples.Samples):
    """Sample images of the current encoder, for the concept and for a retained prompt, in a strip below the curves."""

    def __init__(self, model: HostModel, concept: str, retained: Sequence[str], every: int) -> None:
        super().__init__(model, [concept, *retained[:1]], EvaluateConfig(sampling_steps=12, guidance_scale=5.0))
        self.every, self.iteration = every, 0
        self.strip: Any = None

    def follow(self, progress: Progress) -> bool:
        """Generate new samples if they are due; return whether they were."""
        if (progress.iteration - 1) % self.every and progress.iteration != progress.iterations:
            return False
        latents = self.latents(progress.encoder, self.model.denoiser)
        strip = grid(self.model.look(latents), len(latents), gap=0)  # type: ignore[attr-defined]
        self.iteration, self.strip = progress.iteration, strip.resize((SIDE * len(latents), SIDE))
        return True

    def under(self, image: Any) -> Any:
        """Return an image with the samples in a row below it."""
        from PIL import Image, ImageDraw

        head = TEXT + 8
        both = Image.new("RGB", (image.width, image.height + SIDE + head), "#202020")
        both.paste(image)
        draw = ImageDraw.Draw(both)
        for i, prompt in enumerate(self.prompts):
            text = f"{prompt[:20]} (at {self.iteration})"
            draw.text((2 + i * samples.COUNT * SIDE, image.height + 2), text, fill="#c0c0c0", font=font())
        if self.strip is not None:
            both.paste(self.strip, (0, image.height + head))
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
    count = f"iteration {max(rows)} of {total}"
    draw.text((width - PAD, height - PAD + 4), count, fill="#c0c0c0", font=font(), anchor="ra")
    for k, name in enumerate(names):
        points = [position(i, row[name]) for i, row in rows.items() if name in row]
        if len(points) > 1:
            draw.line(points, fill=COLOURS[name], width=2)
        draw.text((LEFT + 100 * k, 4), name.removesuffix("_end"), fill=COLOURS[name], font=font())
    return image
