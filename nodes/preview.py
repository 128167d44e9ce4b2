"""What a person sees on a node while it works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..advunlearn.config import AttackConfig, BankConfig, TrainConfig
from ..advunlearn.events import Progress
from .host import Bar

SIZE, LEFT, PAD = (512, 288), 56, 28
COLOURS = {"loss": "#4c9be8", "erase": "#e8a04c", "retain": "#5fbf77", "attack_end": "#d46a9f"}
Rows = Mapping[int, Mapping[str, float]]  # iteration -> losses


class Training:
    """Follow a training run: the bar counts bank, attack steps and iterations; the curve is drawn now and then."""

    every = 5  # iterations between two pictures

    def __init__(
        self, node_id: str | None, config: TrainConfig, attack: AttackConfig, bank: BankConfig, retains: bool
    ) -> None:
        self.bank = bank.trajectories + (bank.retain_trajectories if retains else 0)
        self.steps = (1 if config.mode == "fast" else attack.steps) if config.attacks else 0
        self.warmup = config.warmup
        self.bar = Bar(self.place(config.iterations), node_id)
        self.rows: dict[int, Mapping[str, float]] = {}
        self.filled, self.total, self.before = 0, 0, 0

    def place(self, iterations: int, step: int = 0) -> int:
        """Return how much is done after so many whole iterations and, in the next, attack steps."""
        return self.bank + iterations + max(0, iterations - self.warmup) * self.steps + step

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
        draw = progress.iteration % self.every == 0 or progress.iteration == progress.iterations
        self.bar.update(done, curve(self.rows, progress.iterations) if draw else None)


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
        draw.text((6, y - 6), f"{share * top:.3g}", fill="#c0c0c0")
    draw.text((width - PAD - 130, height - PAD + 8), f"iteration {max(rows)} of {total}", fill="#c0c0c0")
    for k, name in enumerate(names):
        points = [place(i, row[name]) for i, row in rows.items() if name in row]
        if len(points) > 1:
            draw.line(points, fill=COLOURS[name], width=2)
        draw.text((LEFT + 90 * k, 8), name.removesuffix("_end"), fill=COLOURS[name])
    return image
