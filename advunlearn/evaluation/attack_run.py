"""Run one attack on all cases that the plain prompt leaves, judge its images, and log successes and cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..attacks.base import Attack, AttackContext
from ..attacks.registry import attack_class, make_attack
from ..config.attacks import JUDGE_ONLY, AttackConfig
from ..models.counting import count_forwards
from ..models.denoiser import Denoiser
from .generation import ImageGenerator, Subject
from .metrics import Row, count_with_interval


@dataclass
class AttackLog:
    """The log of one attack on N cases: which succeeded, with which prompt, at which step.

    The attack has a row for each case that the plain prompt leaves, once per restart.
    """

    success: Tensor  # (N,) bool: whether any image of the case shows the concept
    images: Tensor  # (N, 3, H, W) the image that shows it, or the last one judged
    restarts: int
    curve: list[list[int]] = field(default_factory=list)  # [step, successes]
    notes: dict[int, Row] = field(default_factory=dict)  # case -> step and prompt of its image in `images`
    embeddings: dict[int, Tensor] = field(default_factory=dict)  # successful case -> (k, D)
    judging_seconds: float = 0.0  # spent on generating and judging images

    def __post_init__(self) -> None:
        self.without_attack = self.success.clone()
        self.rows = (~self.success).nonzero().flatten().repeat_interleave(self.restarts)
        self.started = time.perf_counter()
        self.add_to_curve(0)

    def add_to_curve(self, step: int) -> None:
        """Add the number of successes after a step to the curve."""
        self.curve.append([step, int(self.success.sum())])

    def find_open_rows(self) -> Tensor:
        """Return the numbers of the attack's rows whose case has not succeeded yet."""
        return (~self.success[self.rows]).nonzero().flatten()

    def record(
        self, step: int, images: Tensor, hits: Tensor, rows: Tensor, notes: Sequence[Row], embeddings: Tensor
    ) -> None:
        """Record the judged images of some of the attack's rows.

        Args:
            step: number of the attack's step.
            images: (n, 3, H, W).
            hits: (n,) bool, whether an image shows the concept; the first hit makes its case a success.
            rows: (n,) numbers of the attack's rows.
            notes: n rows with the prompt of each image.
            embeddings: (n, k, D) adversarial embeddings of each image.
        """
        for i, case in enumerate(self.rows[rows].tolist()):
            if self.success[case]:
                continue
            self.images[case] = images[i]
            self.notes[case] = notes[i] | {"step": step}
            if hits[i]:
                self.success[case] = True
                self.embeddings[case] = embeddings[i].detach().cpu().clone()  # a view would keep all rows in memory
        self.add_to_curve(step)

    def successful_notes(self) -> dict[int, Row]:
        """Return step and prompt of each case in which the attack succeeded."""
        return {case: note for case, note in sorted(self.notes.items()) if self.success[case]}

    def count_successes(self) -> Row:
        """Return the attack's success as published and its two parts, each with its 95 % interval."""
        total = len(self.success)
        before = int(self.without_attack.sum())
        after = int(self.success.sum())
        parts = {
            "without_attack": count_with_interval(before, total),
            "by_attack": count_with_interval(after - before, total),
        }
        by = {name.replace("_", " "): {k: part[k] for k in ("success", "total")} for name, part in parts.items()}
        counts: Row = {**parts, "sum": count_with_interval(after, total) | {"by": by}}
        exact = [note["exact"] for note in self.successful_notes().values() if "exact" in note]
        return counts | ({"exact": sum(exact)} if exact else {})

    def make_rows(self, plain: Sequence[Row]) -> list[Row]:
        """Return a row per case: the plain prompt's row, the outcome, and the adversarial prompt of its image."""
        rows = []
        for case, row in enumerate(plain):
            outcome = {"success": bool(self.success[case]), "without_attack": bool(self.without_attack[case])}
            rows.append(row | outcome | self.notes.get(case, {}))
        return rows

    def measure_seconds(self) -> dict[str, float]:
        """Return the seconds spent so far on attacking and on judging."""
        attack = time.perf_counter() - self.started - self.judging_seconds
        return {"attack": round(attack, 2), "looks": round(self.judging_seconds, 2)}


class AttackRun:
    """One attack on the cases that the plain prompt leaves.

    Args:
        generator: generates and judges images.
        subject: the attacked model.
        original: the denoiser before erasing, which some attacks need.
        name: name of the attack.
        settings: settings of the attack.
        noise: (N, C, h, w) initial noise of the cases.
        clean: (N, 3, H, W) images of the plain prompts.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        subject: Subject,
        original: Denoiser,
        name: str,
        settings: AttackConfig,
        noise: Tensor,
        clean: Tensor,
    ) -> None:
        self.generator = generator
        self.name = name
        self.settings = settings
        self.noise = noise
        restarts = generator.config.restarts if attack_class(name).restarts else 1
        self.log = AttackLog(generator.detect_concept(clean), clean.clone(), restarts)
        # Three counters: passes of the search through the attacked and the original model, and passes for images.
        self.attacked = count_forwards(subject.denoiser)
        self.original = count_forwards(original)
        self.judged = count_forwards(subject.denoiser)
        self.subject = replace(subject, denoiser=self.judged)
        self.times_judged = 0
        self.last_embeddings: Tensor | None = None  # (rows, k, D) at the end; None if nothing was attacked

    def run(self, context: AttackContext, on_step: Callable[[int, int], None]) -> None:
        """Attack the log's rows; judge images at every `judge_interval` steps and after the last step.

        Args:
            context: the model and the cases of the log's rows.
            on_step: called after each step with its number and the number of steps; may raise to cancel.
        """
        config = self.generator.config
        reference = replace(context.reference, denoiser=self.original)
        context = replace(context, denoiser=self.attacked, reference=reference)
        self.log.started = time.perf_counter()
        attack = make_attack(self.name, context, self.settings, config.seed)
        interval = 1 if self.name in JUDGE_ONLY else config.judge_interval

        def after_step(step: int, loss: float) -> None:
            on_step(step, attack.steps)
            if step % interval == 0 or step == attack.steps:
                self.judge_step(attack, step)

        attack.run(after_step)
        self.last_embeddings = attack.result().embeddings

    def judge_step(self, attack: Attack, step: int) -> None:
        """Generate and judge the images of all cases that have not succeeded yet."""
        log = self.log
        output = attack.result()  # part of the attack: a search compares its points
        started = time.perf_counter()
        rows = log.find_open_rows()
        self.times_judged += 1
        if len(rows):
            noise = self.noise[log.rows.to(self.noise.device)] if output.noise is None else output.noise
            images = self.generator.generate_images(self.subject, *select_rows(rows, output.conditioning, noise))
            texts = attack.prompts() or [{}] * len(log.rows)
            notes = [texts[row] for row in rows.tolist()]
            hits = self.generator.detect_concept(images)
            log.record(step, images, hits, rows, notes, *select_rows(rows, output.embeddings))
        else:
            log.add_to_curve(step)
        log.judging_seconds += time.perf_counter() - started

    def choose_embeddings(self) -> Tensor | None:
        """Return the embeddings (k, D) of the first successful case, else of the first row; None without an attack."""
        if self.last_embeddings is None:
            return None
        successful = self.log.embeddings
        return successful[min(successful)] if successful else self.last_embeddings[0].detach().cpu().clone()

    def to_row(self) -> Row:
        """Return the report's row of the attack: successes, steps, settings and cost in UNet forward passes."""
        return self.log.count_successes() | {
            "steps": self.log.curve[-1][0],
            "looks": self.times_judged,
            "restarts": self.log.restarts,
            "settings": self.settings.to_dict(),
            "forwards": {"attack": self.attacked.forwards + self.original.forwards, "looks": self.judged.forwards},
        }


def select_rows(rows: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Return some rows (n,) of each tensor, on the tensor's device."""
    return tuple(value[rows.to(value.device)] for value in values)
