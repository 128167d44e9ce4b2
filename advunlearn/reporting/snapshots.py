"""Intermediate encoders of a run, each with a quick measure: a run that trains too long damages other images."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from ..config.evaluation import EvaluateConfig
from ..files import write_atomic
from ..models.denoiser import Denoiser
from ..models.loading import TextToImage
from ..training.events import Progress
from .training_samples import Samples

RECORD = "snapshots.json"
NUM_RETAINED = 4  # retained prompts that are sampled for the measure
Save = Callable[[nn.Module, int], str]  # (encoder, iterations) -> the name under which it was saved


@dataclass(frozen=True)
class Snapshot:
    """An encoder after some iterations: how much its images differ from the original model's."""

    iteration: int
    name: str
    concept_change: float  # mean distance of images of the concept, relative to the originals
    retained_change: float  # the same of images of retained prompts

    @property
    def score(self) -> float:
        """High if the images of the concept changed and the others did not."""
        return self.concept_change - self.retained_change


def make_samples(model: TextToImage, concept: str, retained: Sequence[str]) -> Samples:
    """Return the generator of the images that a run's encoders are measured on.

    Args:
        model: the original model.
        concept: the concept's prompt.
        retained: the retained prompts, of which the first few are taken.
    """
    return Samples(model, [concept, *retained[:NUM_RETAINED]], EvaluateConfig(sampling_steps=12, guidance_scale=5.0))


def measure_change(latents: Tensor, original: Tensor) -> Tensor:
    """Return the distance of each image (N, C, h, w) from the original one, relative to the original's size: (N,)."""
    difference = (latents - original).flatten(1).norm(dim=1)
    return difference / original.flatten(1).norm(dim=1)


class Snapshots:
    """Keeps the encoder every N iterations. Call it with every `Progress` of a run.

    The measure is rough: it takes a few images, all from the same noise, and no judge. `advunlearn evaluate` measures.

    Args:
        samples: generates the images: first those of the concept's prompt, then those of retained prompts.
        every: iterations between two snapshots.
        save: saves an encoder.
        folder: the run's folder, which records the snapshots for a resumed run.
        resume: whether the run resumes the one in the folder.
    """

    def __init__(self, samples: Samples, every: int, save: Save, folder: pathlib.Path, resume: bool = False) -> None:
        self.samples = samples
        self.every = every
        self.save = save
        self.record = folder / RECORD
        self.taken: list[Snapshot] = []
        if resume and self.record.is_file():
            self.taken = [Snapshot(**row) for row in json.loads(self.record.read_text(encoding="utf-8"))]
        self.original: Tensor | None = None  # latents of the original model, sampled when they are first needed

    def __call__(self, progress: Progress) -> None:
        """Keep the encoder if it is due."""
        due = progress.phase == "train" and progress.iteration % self.every == 0
        if due and progress.iteration < progress.iterations and progress.encoder is not None:
            assert progress.denoiser is not None
            name = self.save(progress.encoder, progress.iteration)
            self.add(progress.iteration, name, progress.encoder, progress.denoiser)

    def add(self, iteration: int, name: str, encoder: nn.Module, denoiser: Denoiser) -> Snapshot:
        """Measure an encoder that is saved under a name, and record it."""
        if self.original is None:
            self.original = self.samples.latents(self.samples.model.text_encoder, self.samples.model.denoiser)
        change = measure_change(self.samples.latents(encoder, denoiser), self.original)
        concept, retained = change.split([self.samples.count, len(change) - self.samples.count])
        snapshot = Snapshot(iteration, name, concept.mean().item(), _mean(retained))
        self.taken = [other for other in self.taken if other.iteration != iteration] + [snapshot]
        content = json.dumps([asdict(row) for row in self.taken], indent=1)
        write_atomic(self.record, content.encode())
        return snapshot

    def describe(self) -> str:
        """Return a table of the snapshots in lines, the best one named in the last."""
        return describe_snapshots(self.taken)


def _mean(values: Tensor) -> float:
    """Return the mean; without values, 0: a run without retained prompts."""
    return values.mean().item() if len(values) else 0.0


def choose_best_snapshot(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Return the snapshot with the highest score; of equal ones the earliest."""
    return max(snapshots, key=lambda snapshot: (snapshot.score, -snapshot.iteration))


def describe_snapshots(snapshots: Sequence[Snapshot]) -> str:
    """Return a line for each snapshot, and one that names the best."""
    lines = [
        f"at {row.iteration}: images of the concept changed by {row.concept_change:.0%}, retained ones by "
        f"{row.retained_change:.0%}: {row.name}"
        for row in snapshots
    ]
    best = choose_best_snapshot(snapshots)
    return "\n".join([*lines, f"best by this quick measure (concept less retained): {best.name}, at {best.iteration}"])
