"""Memory check before a run: the library's estimate for the host's own modules against the free memory."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.model_management as host

from ..advunlearn.config.training import RunConfig
from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.memory.estimate import Estimator
from ..advunlearn.memory.fake_tensors import TooLong
from ..advunlearn.memory.fit import advise, choose_plan, describe_fit, fit_same_result
from ..advunlearn.memory.plan import GIB, Estimate, Plan
from .host import HostModel

# The host's attention functions that are written in torch and so run on fake tensors. The other ones come from
# libraries with kernels of their own; their memory is that of fused attention.
IN_TORCH = ("attention_basic", "attention_split", "attention_sub_quad")
# Limit for one estimate with such an attention function: at large resolutions it takes very many small steps.
SECONDS = 8.0


class TooLarge(AdvUnlearnError):
    """A run needs more memory than is free."""


def fit_run(model: HostModel, run: RunConfig, prompts: Sequence[str], mode: str = "auto") -> tuple[RunConfig, str]:
    """Return the run with the micro-batch that it uses, and one line for the report: the estimated memory.

    Call it before anything is sampled.

    Args:
        model: the loaded model, with the resolution to train at.
        run: the run configuration.
        prompts: the retained prompts.
        mode: the setting `memory`, see `choose_plan`.

    Raises TooLarge, with settings that would fit, for a run that needs more memory than is free.
    """
    try:
        plan = Plan(run=run, resolution=model.resolution)
        return _Check(model, prompts).fit(plan, mode)
    except (TooLarge, host.InterruptProcessingException):
        raise
    except Exception as error:  # another pack's module may do what fake tensors cannot; that must not stop the run
        logging.warning("AdvUnlearn: the memory of this run could not be estimated", exc_info=True)
        return run, f"memory: not estimated, {type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass
class _Check:
    """One model and the memory that is free next to it."""

    model: HostModel
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        self.device = self.model.denoiser.device
        self.free = host.get_free_memory(self.device)
        self.measure = functools.cache(self._measure)
        self.fused = Estimator(self._with_fused_attention(), self.prompts, self.device)
        # The host's own attention may be divided by what is free, so that memory does not grow with the samples.
        self.own = Estimator(self.model, self.prompts, self.device, linear=False)

    def fit(self, start: Plan, mode: str) -> tuple[RunConfig, str]:
        """Return a run that fits with the same result, and the line of the report. Raises TooLarge if there is none."""
        plan = choose_plan(mode, self.measure, start, None)
        needed = self.measure(plan)
        if not self._fits(needed) and self.device.type != "cpu":
            self.model.denoiser.load(_additional(needed))  # type: ignore[attr-defined]  # unloads other models
            self.free = host.get_free_memory(self.device)
        fit = (plan, needed) if self._fits(needed) else None
        if fit is None and mode == "auto":
            fit = fit_same_result(self.measure, plan, self.free + needed.weights)
        if fit is not None:
            chosen, needed = fit
            return chosen.run, (
                f"memory {mode}: {describe_choice(chosen, start)}, {needed.peak / GIB:.1f} GB (estimated); "
                f"{needed.steady / GIB:.1f} GB between iterations, banks of {needed.bank / GIB:.2f} GB in main memory"
            )
        advice = advise(self.measure, plan, self.free + needed.weights)
        raise TooLarge(
            f"training would need {_additional(needed) / GIB:.1f} GB in addition to the loaded model "
            f"({needed.peak / GIB:.1f} GB in total), but only {self.free / GIB:.1f} GB are free on {self.device}, a "
            f"tenth of which is kept as a reserve; {describe_fit(plan, advice)}"
        )

    def _measure(self, plan: Plan) -> Estimate:
        """Return the estimate; with fused attention, a lower bound, if the host's own takes too long to count."""
        lower_bound = self.fused(plan)
        if attention.optimized_attention.__name__ not in IN_TORCH or not self._fits(lower_bound):
            return lower_bound
        try:
            return self.own(plan, SECONDS)
        except TooLong:
            return lower_bound

    def _fits(self, needed: Estimate) -> bool:
        return needed.fits(self.free + needed.weights)

    def _with_fused_attention(self) -> HostModel:
        """Return the model with torch's fused attention, through the host's option for it."""
        denoiser: Any = copy.copy(self.model.denoiser)
        denoiser.options = {
            **denoiser.options,
            "optimized_attention_override": lambda _, *a, **k: attention.attention_pytorch(*a, **k),
        }
        return replace(self.model, denoiser=denoiser)


def describe_choice(chosen: Plan, start: Plan) -> str:
    """Return the micro-batch of a plan, and what else it saves memory by compared with another plan."""
    whole = chosen.run.samples_in_one_pass
    micro = min(chosen.run.train.micro_batch or whole, whole)
    others = {name: value for name, value in chosen.changes(start).items() if name != "micro_batch"}
    return ", ".join(
        [f"micro-batch {micro} of {whole}", *(f"{name} {str(value).lower()}" for name, value in others.items())]
    )


def _additional(needed: Estimate) -> int:
    """Return the bytes that a run needs in addition to the model that is already loaded."""
    return needed.peak - needed.weights
