"""What a person sees on a node while it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..advunlearn.config import AttackConfig, BankConfig, TrainConfig
from ..advunlearn.trainer import Progress
from .host import Bar

SIZE, MARGIN = (512, 288), (56, 28)
COLOURS = {"loss": "#4c9be8", "erase": "#e8a04c", "retain": "#5fbf77", "attack_end": "#d46a9f"}


class Training:
    """Follow a training run: the bar counts bank, attack steps and iterations; the curve is drawn now and then."""

    every = 5  # iterations between two pictures

    def __init__(
        self, node_id: str | None, config: TrainConfig, attack: AttackConfig, bank: BankConfig, retains: bool
    ) -> None:
        self.bank = bank.trajectories + (bank.retain_trajectories if retains else 0)
        steps = (1 if config.mode == "fast" else attack.steps) if config.attacks else 0
        attacked = max(0, config.iterations - config.warmup) if steps else 0
        self.bar = Bar(self.bank + config.iterations + attacked * steps, node_id)
        self.rows: list[Mapping[str, float]] = []
        self.filled, self.before = 0, 0

    def __call__(self, progress: Progress) -> None:
        """Take one report of the trainer."""
        if progress.phase == "bank":
            if progress.iteration < self.filled:  # the second bank begins
                self.before += self.filled
            self.filled = progress.iteration
            self.bar.update(self.before + self.filled)
            return
        if progress.phase == "attack":
            self.bar.update(self.bar.done + 1)
            return
        self.rows.append(progress.losses)
        last = progress.iteration == progress.iterations
        picture = curve(self.rows, progress.iterations) if last or progress.iteration % self.every == 0 else None
        self.bar.update(self.bar.done + 1, picture)


def curve(rows: Sequence[Mapping[str, float]], total: int) -> Any:
    """Draw losses over iterations as a PIL picture."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", SIZE, "#202020")
    draw = ImageDraw.Draw(image)
    (width, height), (left, pad) = SIZE, MARGIN
    names = [name for name in COLOURS if any(name in row for row in rows)]
    top = max((row[name] for row in rows for name in names if name in row), default=0.0) or 1.0

    def place(i: int, value: float) -> tuple[float, float]:
        return left + (width - left - pad) * i / max(1, total - 1), height - pad - (height - 2 * pad) * value / top

    for share in (0.0, 0.5, 1.0):
        y = place(0, share * top)[1]
        draw.line([(left, y), (width - pad, y)], fill="#404040")
        draw.text((6, y - 6), f"{share * top:.3g}", fill="#c0c0c0")
    draw.text((width - pad - 130, height - pad + 8), f"iteration {len(rows)} of {total}", fill="#c0c0c0")
    for k, name in enumerate(names):
        points = [place(i, row[name]) for i, row in enumerate(rows) if name in row]
        if len(points) > 1:
            draw.line(points, fill=COLOURS[name], width=2)
        draw.text((left + 90 * k, 8), name.replace("_end", ""), fill=COLOURS[name])
    return image
