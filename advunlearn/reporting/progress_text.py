"""A run's progress in words: the phase, the seconds an iteration takes, and the time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean

from ..config.training import RunConfig
from ..training.events import Progress
from ..training.schedule import Schedule

RECENT = 20  # iterations over which times are averaged


class ProgressText:
    """Describes the progress of one run. Call it with every `Progress` of the run, in order.

    An attack and the training part of an iteration are timed separately: the warm-up has no attacks. Until the first
    attack has ended, its time is estimated from the number of its passes.

    Args:
        run: the settings.
        trajectories: number of trajectories in all banks together.
        clock: returns the time in seconds.
    """

    def __init__(self, run: RunConfig, trajectories: int, clock: Callable[[], float] = time.monotonic) -> None:
        train, attack = run.train, run.attack.in_mode(run.train.mode)
        self.schedule = Schedule.from_config(run)
        self.attack_steps = attack.all_steps if train.attacks else 0
        samples = train.batch + (train.retain_batch if train.retains else 0)
        self.cost_of_attack = self.attack_steps * attack.restarts / samples  # in iterations without an attack
        self.clock = clock
        self.attack_seconds: deque[float] = deque(maxlen=RECENT)
        self.train_seconds: deque[float] = deque(maxlen=RECENT)
        self.trajectories = trajectories
        self.full = self.filled = 0  # trajectories of the banks that are full, and all
        self.begin = clock()
        self.last: float | None = None  # when the last part of an iteration ended

    def __call__(self, progress: Progress) -> str:
        """Return one line about the progress."""
        return {"bank": self._filling, "attack": self._attacking, "train": self._training}[progress.phase](progress)

    def skip(self) -> None:
        """Do not count the time since the last call: something else took it, for example sample images."""
        self.last = self.clock()

    def _end_part(self, seconds: deque[float]) -> None:
        """Note the time since the last part of an iteration ended; loading the state of a resumed run is none."""
        now = self.clock()
        if self.last is not None:
            seconds.append(now - self.last)
        self.last = now

    def time_left(self, iteration: int, attack_step: int = 0) -> float | None:
        """Return the estimated seconds left after `iteration` iterations and some steps of the next attack."""
        if not self.train_seconds:
            return None
        seconds = fmean(self.train_seconds)
        attack = fmean(self.attack_seconds) if self.attack_seconds else self.cost_of_attack * seconds
        attacks = self.schedule.num_attacks - self.schedule.attacks_before(iteration)
        attacks_done = attack_step / self.attack_steps if self.attack_steps else 0.0
        return (self.schedule.iterations - iteration) * seconds + (attacks - attacks_done) * attack

    def _filling(self, progress: Progress) -> str:
        self.filled = done = self.full + progress.iteration
        if progress.iteration == progress.iterations:
            self.full += progress.iterations
        self.last = self.clock()
        if not done:
            self.begin = self.last
        left = self.trajectories - done
        seconds = left * (self.last - self.begin) / done if left and done else None
        return f"filling the bank: {done} of {self.trajectories} trajectories" + describe_left(
            seconds, "until training"
        )

    def _attacking(self, progress: Progress) -> str:
        i, step = progress.iteration, progress.attack_step
        if step == self.attack_steps:
            self._end_part(self.attack_seconds)
        text = f"attacking: step {step} of {self.attack_steps} in iteration {i + 1} of {progress.iterations}"
        return text + self._pace() + describe_left(self.time_left(i, step))

    def _training(self, progress: Progress) -> str:
        self._end_part(self.train_seconds)
        text = f"training: iteration {progress.iteration} of {progress.iterations}"
        left = self.time_left(progress.iteration) if progress.iteration < progress.iterations else None
        return text + self._pace() + describe_left(left)

    def _pace(self) -> str:
        """Return the mean time of recent iterations; one that shares its attack has a part of the attack's time."""
        if not self.train_seconds:
            return ""
        attack = fmean(self.attack_seconds) / self.schedule.attack_interval if self.attack_seconds else 0.0
        return f", {describe_seconds(fmean(self.train_seconds) + attack)} an iteration"


def describe_left(seconds: float | None, until: str = "left") -> str:
    """Return the end of a line about the time left; nothing if it is not known."""
    return "" if seconds is None else f", about {describe_seconds(seconds)} {until}"


def describe_seconds(seconds: float) -> str:
    """Return a duration in two digits or two units: 0.42 s, 2.1 s, 24 s, 5 min, 1 h 12 min."""
    if seconds < 60:
        digits: Sequence[int] = (2, 1, 0)
        return f"{seconds:.{digits[(seconds >= 0.995) + (seconds >= 9.95)]}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
