"""A run's progress in words, on a clock that the test turns."""

from __future__ import annotations

import pytest

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.training import RunConfig, TrainConfig
from advunlearn.reporting.progress_text import ProgressText, describe_seconds
from advunlearn.training.events import Progress


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_text(clock: Clock, **attack: int) -> ProgressText:
    """Return the texts of 10 iterations, 2 of them warm-up, of 4 samples, with attacks of 2 steps on 2 restarts."""
    train = TrainConfig(iterations=10, warmup=2, batch=2, retain_batch=2)
    return ProgressText(RunConfig(train=train, attack=AdversaryConfig(steps=2, restarts=2, **attack)), 96, clock)


def train_event(iteration: int) -> Progress:
    return Progress("train", iteration, 10)


def test_the_banks_are_counted_together() -> None:
    clock = Clock()
    text = make_text(clock)
    clock.now += 100  # of work before the banks
    assert text(Progress("bank", 0, 64)) == "filling the bank: 0 of 96 trajectories"
    clock.now += 12
    assert (
        text(Progress("bank", 24, 64)) == "filling the bank: 24 of 96 trajectories, about 36 s until training"
    )  # 72 / 2
    clock.now += 20
    assert text(Progress("bank", 64, 64)) == "filling the bank: 64 of 96 trajectories, about 16 s until training"
    assert text(Progress("bank", 0, 32)) == "filling the bank: 64 of 96 trajectories, about 16 s until training"
    clock.now += 8
    assert text(Progress("bank", 16, 32)) == "filling the bank: 80 of 96 trajectories, about 8.0 s until training"
    assert text(Progress("bank", 32, 32)) == "filling the bank: 96 of 96 trajectories"


def test_the_time_left_counts_attacks_and_iterations_separately() -> None:
    clock = Clock()
    text = make_text(clock)
    text(Progress("bank", 1, 1))
    clock.now += 1
    # 9 iterations of 1 s, and 8 attacks; of each 2 steps on 2 restarts, as much as one iteration of 4 samples.
    assert text(train_event(1)) == "training: iteration 1 of 10, 1.0 s an iteration, about 17 s left"
    clock.now += 1
    text(train_event(2))
    clock.now += 3
    attacking = text(Progress("attack", 2, 10, 1))
    assert attacking.startswith("attacking: step 1 of 2 in iteration 3 of 10, 1.0 s an iteration")
    clock.now += 3
    text(Progress("attack", 2, 10, 2))
    clock.now += 1
    # 7 iterations of 1 s and 7 attacks of 6 s.
    assert text(train_event(3)) == "training: iteration 3 of 10, 7.0 s an iteration, about 49 s left"


def test_sample_images_and_the_start_of_a_resumed_run_are_not_timed() -> None:
    clock = Clock()
    text = make_text(clock)
    clock.now += 50  # reading the state
    assert text(train_event(4)) == "training: iteration 4 of 10"
    clock.now += 2
    text(train_event(5))
    clock.now += 30  # sample images
    text.skip()
    clock.now += 2
    assert "2.0 s an iteration" in text(train_event(6))
    assert text(train_event(10)).endswith("an iteration")  # nothing is left


def test_an_attack_that_is_reused_is_shared_by_its_iterations() -> None:
    clock = Clock()
    text = make_text(clock, attack_interval=4)
    text(train_event(2))
    clock.now += 8
    text(Progress("attack", 2, 10, 2))
    clock.now += 1
    # An attack of 8 s every 4 iterations of 1 s; 7 iterations and the attack at iteration 6 are left.
    assert text(train_event(3)) == "training: iteration 3 of 10, 3.0 s an iteration, about 15 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.421, "0.42 s"),
        (0.996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (61, "1 min"),
        (4340, "1 h 12 min"),
    ],
)
def test_a_duration_has_two_digits_or_two_units(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text
