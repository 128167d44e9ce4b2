"""What each of two processes does for `test_distributed`; they are started as a launcher starts them."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor
from transformers.utils import logging

from advunlearn.cli.main import main
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.models.loading import TextToImage, load
from advunlearn.training import distributed as parallel
from advunlearn.training import trainer
from advunlearn.training.checkpoint import Checkpoints
from advunlearn.training.distributed import SINGLE, Group, Processes
from advunlearn.training.events import Progress

RETAIN = ["a dog", "a photo of a castle", "a tree"]
TRAIN = TrainConfig(iterations=3, warmup=1, batch=4, clean_share=0.5, retain_weight=1.0, retain_batch=2, lr=1e-4)
ATTACK = AdversaryConfig(steps=2, restarts=2, tokens=2)
# So short-lived banks that trajectories are renewed in nearly every iteration; in float32, since half precision would
# turn a last bit of what was sampled in other batches into a step a thousand times as large.
BANK = BankConfig(trajectories=4, retain_trajectories=4, sampling_steps=2, draws_per_sample=0.75, dtype="float32")
ODD = {
    "batch": 5,
    "retain_batch": 3,
    "clean_share": 0.7,
    "retain_mode": "step",
    "retain_steps": 2,
    "trainable": "attention",
}
Settings = tuple[TrainConfig, AdversaryConfig, BankConfig]
RUNS: dict[str, Settings] = {
    "even": (TRAIN, ATTACK, BANK),
    "odd": (
        TrainConfig(**{**TRAIN.to_dict(), **ODD}),
        AdversaryConfig(
            steps=2, restarts=3, update="adam", start="latest", resample="iteration", radius=1.0, norm="l2"
        ),
        BankConfig(trajectories=5, retain_trajectories=3, sampling_steps=2, draws_per_sample=0.75, dtype="float32"),
    ),
    "half": (TRAIN, ATTACK, replace(BANK, dtype="float16")),
    "micro": (replace(TRAIN, micro_batch=1), ATTACK, BANK),
    "unet": (TrainConfig(mode="esd_unet", iterations=2, batch=3), ATTACK, BANK),
}
FLAGS = "--iterations 3 --warmup 1 --batch 4 --retain-batch 2 --attack-steps 2 --attack-restarts 2 --device cpu "
FLAGS += "--bank-dtype float32 --bank-trajectories 4 --bank-retain-trajectories 4 --bank-sampling-steps 2 "
FLAGS += "--sample-every 0"


class Deaf(Group):
    """Processes that do not tell each other their gradients; all else is told in lists."""

    def all_reduce_(self, tensors: Iterable[Tensor | None]) -> None:
        if isinstance(tensors, list):
            super().all_reduce_(tensors)


def run(
    model: TextToImage,
    settings: Settings,
    processes: Processes = SINGLE,
    folder: pathlib.Path | None = None,
    resume: bool = False,
    stop: int = 0,
) -> trainer.TrainResult:
    """Train; stop after that iteration."""
    config, attack, bank = settings

    def follow(progress: Progress) -> bool:
        return progress.phase == "train" and progress.iteration == stop

    checkpoints = Checkpoints(folder) if folder else None
    concept = ConceptConfig(concept="church\ncastle", schedule="round_robin")
    return trainer.train(
        model,
        RunConfig(concept=concept, attack=attack, train=config, bank=bank),
        RETAIN,
        callback=follow,
        checkpoints=checkpoints,
        resume=resume,
        processes=processes,
    )


def trained(result: trainer.TrainResult) -> dict[str, Tensor]:
    """Return the weights that a run may have changed."""
    return {**result.encoder.state_dict(), **result.denoiser.unet.state_dict()}


def refusals(model: TextToImage, group: Group) -> list[str]:
    """Return what is said to settings that two processes cannot share."""
    said = []
    for settings in (
        (TrainConfig(**{**TRAIN.to_dict(), "batch": 1}), ATTACK, BANK),
        (TRAIN, AdversaryConfig(restarts=1), BANK),
        (TRAIN, ATTACK, BankConfig(retain_trajectories=1)),
        (TRAIN, AdversaryConfig(inversion_tokens=2), BANK),
        (TrainConfig(**{**TRAIN.to_dict(), "mode": "official"}), ATTACK, BANK),
    ):
        try:
            run(model, settings, group)
        except AdvUnlearnError as error:
            said.append(str(error))
    return said


def on_second_erase_loss(group: Group, do: Callable[[Tensor], Tensor]) -> None:
    """Let something happen to the second process in the second iteration of what it trains next."""
    loss, calls = parallel_loss, []

    def counted(*args: Tensor) -> Tensor:
        calls.append(args)
        value = loss(*args)
        return do(value) if len(calls) == 2 and not group.main else value

    trainer.erase_loss = counted


parallel_loss = trainer.erase_loss


def interrupt(loss: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGINT)
    return loss


def command(*argv: str) -> int:
    """Return what the command line ends with."""
    try:
        return main(argv)
    except SystemExit as error:
        return int(str(error.code))


def work(out: pathlib.Path, group: Group) -> None:
    """Train, in all ways that the test looks at."""
    logging.disable_progress_bar()
    model, kept = load("miniature"), {}
    results = {name: run(model, settings, group) for name, settings in RUNS.items()}
    results["deaf"] = run(model, RUNS["even"], Deaf())
    # The second process stops in the second iteration: so do both. Then they go on.
    stopped = run(model, RUNS["even"], group, out / "kept", stop=0 if group.main else 2)
    results["resumed"] = run(model, RUNS["even"], group, out / "kept", resume=True)
    run(model, RUNS["odd"], group, out / "for-one", stop=2)
    kept = {name: {"losses": r.losses, "weights": trained(r)} for name, r in results.items()}
    on_second_erase_loss(group, interrupt)
    codes = [command("train", "--out", str(out / "run"), *FLAGS.split())]
    trainer.erase_loss = parallel_loss
    codes.append(command("train", "--out", str(out / "run"), "--resume"))
    on_second_erase_loss(group, lambda loss: loss * float("nan"))
    codes.append(command("train", "--out", str(out / "diverged"), *FLAGS.split()))
    said = {"stopped": stopped.iterations, "codes": codes, "refusals": refusals(model, group)}
    torch.save({"runs": kept, **said}, out / f"{group.rank}.pt")


if __name__ == "__main__":
    with parallel.joined_processes() as processes:
        assert isinstance(processes, Group)
        work(pathlib.Path(sys.argv[1]), processes)
