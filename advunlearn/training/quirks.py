"""What the published code does differently from its paper, each by name; mode `official` has all of it.

For comparison with encoders that were trained by OPTML-Group/AdvUnlearn. Its prompts, latents and attack are reproduced
from the description of what that code does, not copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config.quirks import NONE as NONE
from ..config.quirks import OFFICIAL as OFFICIAL
from ..config.quirks import Quirks as Quirks
from ..config.quirks import parse_quirks as parse_quirks
from ..config.training import BankConfig
from .bank import BankSamples, TrajectoryBank
from .fresh_bank import FreshSampler


def bank_kind(mode: str, quirks: Quirks) -> type[TrajectoryBank]:
    """Return where a run draws its samples from."""
    if quirks.cleaner_latents:
        return PublishedSampler
    return FreshSampler if mode == "official" else TrajectoryBank


def cut_to_words(ids: Tensor, prompts: Sequence[str], eos: int) -> Tensor:
    """Return token ids (P, L) of which only as many stay as their prompt has words; the rest is `eos`."""
    cut = ids.clone()
    for row, prompt in zip(cut, prompts, strict=True):
        row[1 + len(prompt.split()) :] = eos
    return cut


class PublishedSampler(FreshSampler):
    """Latents of noise level s told to be of a timestep in [s + 39, s + 58], for 50 sampling steps.

    In general, with a stride of r timesteps between two sampling steps: [s + 2 r - 1, s + 3 r - 2].
    """

    @classmethod
    def sampling_of(cls, count: int, config: BankConfig) -> float:
        """The predictions are made once more, which is what a step takes."""
        return super().sampling_of(count, config) + count

    def draw(self, batch: int) -> BankSamples:
        """Return `batch` triples, the original model's predictions at the timesteps that it is told."""
        total, steps = len(self.denoiser.alphas_cumprod), self.config.sampling_steps
        stride = total // steps
        k = torch.randint(min(2, steps - 1), steps, (batch,), generator=self.generator)
        late = 2 * stride - 1 + torch.randint(stride, (batch,), generator=self.generator)
        drawn = self.sampled_at(k)
        t = (drawn.t + late.to(drawn.t.device)).clamp(max=total - 1)
        numbers = drawn.prompt.cpu()
        anchor = self.uncond.expand(batch, -1, -1) if self.anchor is None else self.anchor(numbers)
        return BankSamples(
            drawn.x_t,
            t,
            self.predict(drawn.x_t, t, anchor),
            self.predict(drawn.x_t, t, self.cond(numbers)),
            drawn.prompt,
        )
