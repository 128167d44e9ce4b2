"""Will a run fit? The library's estimate of the host's own modules, against the memory that is free."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.model_management as host

from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.memory.estimate import estimate
from ..advunlearn.memory.fake_tensors import TooLong
from ..advunlearn.memory.fit import advise, sentence
from ..advunlearn.memory.plan import GIB, Estimate, Plan
from .host import HostModel

# Attention that is written in torch runs on fake tensors; what other libraries bring does not, and is fused.
IN_TORCH = ("attention_basic", "attention_split", "attention_sub_quad")
SECONDS = 8.0  # for one estimate with such attention, which may take very many small steps


class TooLarge(AdvUnlearnError):
    """A run takes more memory than is free."""


def check(model: HostModel, prompts: Sequence[str], **settings: Any) -> str:
    """Return a line on what a run will take, or on why that is not known. Call it before anything is sampled.

    Args:
        model: loaded, with the resolution it is to train at.
        prompts: the retained prompts.
        settings: concept, attack, train and bank.

    Raises TooLarge, with settings that would fit, for a run that takes more than is free.
    """
    try:
        plan = Plan(resolution=model.denoiser.latent_shape[-1] * 8, **settings)
        return _Check(model, prompts).line(plan)
    except (TooLarge, host.InterruptProcessingException):
        raise
    except Exception as error:  # what a module can do that fake tensors cannot is anybody's guess: train all the same
        logging.warning("AdvUnlearn: what this run takes could not be estimated", exc_info=True)
        return f"memory: not estimated, {type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass
class _Check:
    """One node's model and what is free beside it."""

    model: HostModel
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        self.device = self.model.denoiser.device
        self.free = host.get_free_memory(self.device)
        self.measure = functools.cache(self._measure)

    def line(self, plan: Plan) -> str:
        """Return the line of the report. Raises TooLarge for a plan that does not fit."""
        found = self.measure(plan)
        if not self._fits(found) and self.device.type != "cpu":
            self.model.denoiser.load(_beside(found))  # type: ignore[attr-defined]  # other models make room
            self.free = host.get_free_memory(self.device)
        if self._fits(found):
            return (
                f"memory: {found.peak / GIB:.1f} GB at most, {found.steady / GIB:.1f} GB between iterations, estimated "
                f"before the run; banks of {found.bank / GIB:.2f} GB in the computer's memory"
            )
        advice = advise(self.measure, plan, self.free + found.weights)
        raise TooLarge(
            f"training would need {_beside(found) / GIB:.1f} GB beside the loaded model, {found.peak / GIB:.1f} GB "
            f"with it, and {self.free / GIB:.1f} GB are free on {self.device}, of which a tenth is left alone; "
            f"{sentence(plan, advice)}"
        )

    def _measure(self, plan: Plan) -> Estimate:
        """Return the estimate; with fused attention where the host's own takes too long to count, which is less."""
        fused = self._with_fused_attention()
        least = estimate(fused, plan, self.prompts, self.device)
        if attention.optimized_attention.__name__ not in IN_TORCH or not self._fits(least):
            return least
        try:
            return estimate(self.model, plan, self.prompts, self.device, SECONDS)
        except TooLong:
            return least

    def _fits(self, found: Estimate) -> bool:
        return found.fits(self.free + found.weights)

    def _with_fused_attention(self) -> HostModel:
        """Return the model with torch's fused attention, in the place where the host lets a pack choose it."""
        denoiser: Any = copy.copy(self.model.denoiser)
        denoiser.options = {
            **denoiser.options,
            "optimized_attention_override": lambda _, *a, **k: attention.attention_pytorch(*a, **k),
        }
        return replace(self.model, denoiser=denoiser)


def _beside(found: Estimate) -> int:
    """Return the bytes a run takes beside the model that is loaded already."""
    return found.peak - found.weights
