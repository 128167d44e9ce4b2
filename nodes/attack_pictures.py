"""Pictures of a prompt without and with an attack, and what a judge sees in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..advunlearn.config.concept import ConceptConfig

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..advunlearn.config.evaluation import EvaluateConfig
    from ..advunlearn.judges.base import Judge
    from .host import Bar, HostModel
    from .status import Status

PICTURES = 4  # per prompt
SEED = 4  # added to the seed: noise that the attack has not seen
SIDES = ("without the attack", "with the attack")


@dataclass(frozen=True)
class Verdict:
    """What a judge sees in the pictures of `SIDES`."""

    label: str  # the judge's name of the concept
    shown: Sequence[Sequence[bool]]  # per side and picture, whether it shows the concept

    def describe(self) -> list[str]:
        """Return whether the attack brings the concept back more often than the plain prompt, and in which pictures."""
        without, attacked = (sum(side) for side in self.shown)
        outcome = "succeeded" if attacked > without else "made no difference" if attacked == without > 0 else "failed"
        count = len(self.shown[0])
        numbers = (", ".join(str(i) for i, yes in enumerate(side, start=1) if yes) or "none" for side in self.shown)
        sides = (f"{side} {which}" for side, which in zip(SIDES, numbers, strict=True))
        return [
            f"the attack {outcome}: {self.label} in {attacked} of {count} pictures, without it in {without}",
            f"pictures that show {self.label}: {'; '.join(sides)}",
        ]


@dataclass(frozen=True)
class Comparison:
    """Pictures from the same noise."""

    images: Sequence[Tensor]  # (N, 3, H, W) in [0, 1] for each of `SIDES`
    verdict: Verdict | None = None  # None without a judge

    def describe(self) -> list[str]:
        """Return the verdict's lines; [] without a judge."""
        return self.verdict.describe() if self.verdict else []

    def draw(self, prompts: Sequence[str]) -> Image.Image:
        """Return both sides next to each other, each under its prompt; pictures that show the concept are framed."""
        from ..advunlearn.reporting.images import draw_side_by_side

        shown = self.verdict.shown if self.verdict else ((), ())
        counts = [f": {self.verdict.label} in {sum(s)} of {len(s)}" if self.verdict else "" for s in shown]
        titles = [f"{side}{count}\n{prompt}" for side, count, prompt in zip(SIDES, counts, prompts, strict=True)]
        return draw_side_by_side(titles, self.images, shown)


def find_label(judge: Judge, name: str) -> str:
    """Return a judge's name of a concept, an object or a style. Raises AdvUnlearnError if the judge knows none."""
    return judge.concept_label(ConceptConfig(concept=name, kind="prompt"))


def compare(
    status: Status,
    bar: Bar,
    model: HostModel,
    encoded: Sequence[Any],
    shape: Sequence[int],
    config: EvaluateConfig,
    count: int,
    judge: Judge | None,
    label: str,
) -> Comparison:
    """Sample both conditionings from the same noise; let a judge, if there is one, look for a label.

    Args:
        status, bar: show the progress; the bar has one unit for each side.
        model: samples and decodes; without a VAE the pictures are rough previews.
        encoded: CONDITIONING without and with the attack.
        shape: (C, h, w) of the latents.
        config: sampling steps, guidance scale and seed.
        count: pictures per conditioning.
        judge, label: see `find_label`.
    """
    import torch

    from . import host

    with host.enable_gradients():
        model.denoiser.load()  # encoding may have taken its place on the device
        noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(config.seed + SEED))
        noise = noise.to(model.denoiser.device)
        images = []
        for side, conditioning in zip(SIDES, encoded, strict=True):
            status.show(f"drawing {count} pictures {side}")
            latents = sample(model, read_conditioning(conditioning, model.denoiser.pooled), noise, config)
            images.append(model.look(latents).float().cpu())
            bar.update(bar.done + 1)
        if judge is None:
            return Comparison(images)
        shown = [judge.look(side, label).shows(label).tolist() for side in images]
        return Comparison(images, Verdict(label, shown))


def read_conditioning(encoded: Any, pooled: int) -> Tensor:
    """Return the host's CONDITIONING of one prompt as the library's (1, L, D), with the pooled output as a last row.

    Args:
        encoded: the host's CONDITIONING.
        pooled: width of the pooled output of a MODEL that reads it; 0 for one that does not.
    """
    import torch

    hidden, more = encoded[0]
    if not pooled:
        return hidden.clone()  # no inference tensor
    row = torch.nn.functional.pad(more["pooled_output"], (0, hidden.shape[-1] - pooled))
    return torch.cat([hidden, row[:, None].to(hidden)], 1)


def sample(model: HostModel, conditioning: Tensor, noise: Tensor, config: EvaluateConfig) -> Tensor:
    """Return latents (N, C, h, w) of noise and a conditioning (1, L, D), in batches that fit."""
    import torch

    from ..advunlearn.models.ddim import ddim_sample, scale_batch

    empty = repeat_chunks(model.encode([""]), conditioning.shape[1], bool(model.denoiser.pooled))
    conditioning = conditioning.to(empty)
    steps, scale = config.sampling_steps, config.guidance_scale
    parts = noise.split(scale_batch(128, noise))
    return torch.cat(
        [ddim_sample(model.denoiser, conditioning.expand(len(z), -1, -1), empty, z, steps, scale) for z in parts]
    )


def repeat_chunks(empty: Tensor, length: int, pooled: int) -> Tensor:
    """Return a conditioning (1, L + p, D) of one chunk with `length` rows, as the host does for a prompt in chunks.

    The last `pooled` rows are not repeated.
    """
    import torch

    rows = empty.shape[1] - pooled
    return torch.cat([empty[:, :rows].repeat(1, (length - pooled) // rows, 1), empty[:, rows:]], 1)
