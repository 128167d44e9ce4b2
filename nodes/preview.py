"""What a person sees on a node while it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..advunlearn.config.adversary import AdversaryConfig
from ..advunlearn.config.evaluation import EvaluateConfig
from ..advunlearn.config.training import BankConfig, TrainConfig
from ..advunlearn.reporting import training_samples as samples
from ..advunlearn.reporting.images import grid
from ..advunlearn.training.events import Progress
from ..advunlearn.training.quirks import bank_kind, parse_quirks
from .host import Bar, HostModel

SIZE, LEFT, PAD = (512, 288), 72, 32
TEXT = 18  # pixels high: a node shows the picture at little more than half its size
SIDE = 128  # of a sample picture
COLOURS = {"loss": "#4c9be8", "erase": "#e8a04c", "retain": "#5fbf77", "attack_end": "#d46a9f"}
Rows = Mapping[int, Mapping[str, float]]  # iteration -> losses


class Training:
    """Follow a training run: the bar counts bank, attack steps and iterations; the curve is drawn now and then."""

    every = 5  # iterations between two pictures

    def __init__(
        self, node_id: str | None, config: TrainConfig, attack: AdversaryConfig, bank: BankConfig, retains: bool
    ) -> None:
        banked = bank.trajectories + (bank.retain_trajectories if retains else 0)
        self.bank = banked if bank_kind(config.mode, parse_quirks(config.mode)).keeps else 0
        self.steps = attack.in_mode(config.mode).all_steps if config.attacks else 0
        self.warmup, self.period = config.warmup, attack.attack_interval
        self.bar = Bar(self.place(config.iterations), node_id)
        self.rows: dict[int, Mapping[str, float]] = {}
        self.samples: Samples | None = None
        self.filled, self.total, self.before = 0, 0, 0

    def place(self, iterations: int, step: int = 0) -> int:
        """Return how much is done after so many whole iterations and, in the next, attack steps."""
        attacks = -(-max(0, iterations - self.warmup) // self.period)
        return self.bank + iterations + attacks * self.steps + step

    def __call__(self, progress: Progress) -> None:
        """Take one report of the trainer."""
        if progress.phase == "bank":
            if self.filled == self.total:  # the second bank begins
                self.before += self.filled
            self.filled, self.total = progress.iteration, progress.iterations
            self.bar.update(self.before + self.filled)
            return
        done = self.place(progress.iteration, progress.attack_step)
        if progress.phase == "attack":
            self.bar.update(done)
            return
        self.rows[progress.iteration] = progress.losses
        new = self.samples is not None and self.samples.follow(progress)
        draw = new or progress.iteration % self.every == 0 or progress.iteration == progress.iterations
        self.bar.update(done, self.picture(progress.iterations) if draw else None)

    def picture(self, iterations: int) -> Any:
        """Return the curve, the sample pictures under it, as a PIL picture."""
        image = curve(self.rows, iterations)
        return image if self.samples is None else self.samples.under(image)


class Samples(samples.Samples):
    """What the encoder in training draws for the concept and for a retained prompt, in a strip under the curve."""

    def __init__(self, model: HostModel, concept: str, retained: Sequence[str], every: int) -> None:
        super().__init__(model, [concept, *retained[:1]], EvaluateConfig(sampling_steps=12, guidance_scale=5.0))
        self.every, self.iteration = every, 0
        self.strip: Any = None

    def follow(self, progress: Progress) -> bool:
        """Draw anew when it is time; return whether that was so."""
        if (progress.iteration - 1) % self.every and progress.iteration != progress.iterations:
            return False
        latents = self.latents(progress.encoder, self.model.denoiser)
        strip = grid(self.model.look(latents), len(latents), gap=0)  # type: ignore[attr-defined]
        self.iteration, self.strip = progress.iteration, strip.resize((SIDE * len(latents), SIDE))
        return True

    def under(self, image: Any) -> Any:
        """Return a picture with the samples in a row under it."""
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
    """Return the font of the texts in a picture; it needs no file."""
    from PIL import ImageFont

    return ImageFont.load_default(TEXT)


def curve(rows: Rows, total: int) -> Any:
    """Draw losses over iterations as a PIL picture."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", SIZE, "#202020")
    draw = ImageDraw.Draw(image)
    width, height = SIZE
    names = [name for name in COLOURS if any(name in row for row in rows.values())]
    top = max((row[name] for row in rows.values() for name in names if name in row), default=0.0) or 1.0

    def place(i: int, value: float) -> tuple[float, float]:
        return LEFT + (width - LEFT - PAD) * i / max(1, total), height - PAD - (height - 2 * PAD) * value / top

    for share in (0.0, 0.5, 1.0):
        y = place(0, share * top)[1]
        draw.line([(LEFT, y), (width - PAD, y)], fill="#404040")
        draw.text((LEFT - 8, y), f"{share * top:.3g}", fill="#c0c0c0", font=font(), anchor="rm")
    count = f"iteration {max(rows)} of {total}"
    draw.text((width - PAD, height - PAD + 4), count, fill="#c0c0c0", font=font(), anchor="ra")
    for k, name in enumerate(names):
        points = [place(i, row[name]) for i, row in rows.items() if name in row]
        if len(points) > 1:
            draw.line(points, fill=COLOURS[name], width=2)
        draw.text((LEFT + 100 * k, 4), name.removesuffix("_end"), fill=COLOURS[name], font=font())
    return image
