"""One attack on all cases that the plain prompt leaves: steps, looks, and what both cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..attacks.base import Attack, AttackContext
from ..attacks.registry import attack_class, make_attack
from ..config.attacks import JUDGE_ONLY, AttackConfig
from ..models.counting import counting
from ..models.denoiser import Denoiser
from .attack_log import AttackLog, pick
from .generation import ImageGenerator
from .measurement import Subject


class AttackRun:
    """An attack by its name, its settings, and the pictures that are looked at on the way.

    Args:
        drawing: draws and judges.
        subject: what is attacked.
        original: the denoiser before erasing, which some attacks ask.
        noise: (N, C, h, w) the cases' own.
        clean: (N, 3, H, W) what the plain prompts gave.
    """

    def __init__(
        self,
        drawing: ImageGenerator,
        subject: Subject,
        original: Denoiser,
        name: str,
        settings: AttackConfig,
        noise: Tensor,
        clean: Tensor,
    ) -> None:
        self.drawing, self.name, self.settings, self.noise = drawing, name, settings, noise
        restarts = drawing.config.restarts if attack_class(name).restarts else 1
        self.run, self.looks = AttackLog(drawing.hits(clean), clean.clone(), restarts), 0
        self.searched, self.asked, self.looked = map(counting, (subject.denoiser, original, subject.denoiser))
        self.subject = replace(subject, denoiser=self.looked)
        self.final: Tensor | None = None  # the embeddings at the end; None where there was nothing to attack

    def attack(self, scene: AttackContext, on_step: Callable[[int, int], None]) -> None:
        """Attack a scene of the run's rows; look now and then, and after the last step."""
        config = self.drawing.config
        scene = replace(scene, denoiser=self.searched, original=replace(scene.original, denoiser=self.asked))
        self.run.began = time.perf_counter()
        attack = make_attack(self.name, scene, self.settings, config.seed)
        every = 1 if self.name in JUDGE_ONLY else config.judge_interval

        def follow(step: int, loss: float) -> None:
            on_step(step, attack.steps)
            if step % every == 0 or step == attack.steps:
                self.look(attack, step)

        attack.run(follow)
        self.final = attack.found().embeddings

    def look(self, attack: Attack[Any], step: int) -> None:
        """Draw what an attack stands for now and judge it."""
        run = self.run
        began, found, at = time.perf_counter(), attack.found(), run.open_rows()
        self.looks += 1
        if len(at):
            noise = self.noise[run.rows.to(self.noise.device)] if found.noise is None else found.noise
            images = self.drawing.pictures(self.subject, *pick(at, found.conditioning, noise))
            texts = attack.texts() or [{}] * len(run.rows)
            notes = [texts[row] for row in at.tolist()]
            run.saw(step, images, self.drawing.hits(images), at, notes, *pick(at, found.embeddings))
        else:
            run.curve.append([step, int(run.found.sum())])
        run.looking += time.perf_counter() - began

    def row(self) -> dict[str, Any]:
        """Return what a report says of the attack."""
        return self.run.counts() | {
            "steps": self.run.curve[-1][0],
            "looks": self.looks,
            "restarts": self.run.restarts,
            "settings": self.settings.to_dict(),
            "forwards": {"attack": self.searched.forwards + self.asked.forwards, "looks": self.looked.forwards},
        }
