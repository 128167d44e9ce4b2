"""Find settings that fit into a device's memory: first those with the same result, then smaller ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .plan import GIB, PUBLISHED_RESOLUTION, USABLE, Estimate, Plan

Measure = Callable[[Plan], Estimate]
Fit = tuple[Plan, Estimate]
CARD_SIZES = (24, 16, 12, 8, 6)  # GiB


def fit_micro_batch(measure: Measure, plan: Plan, device_bytes: float) -> Fit | None:
    """Return the plan with the largest micro-batch that fits; None if not even one sample at a time does.

    The whole batch is measured first, then one sample. In between, memory is linear in the micro-batch.
    """
    whole = measure(plan)
    if whole.fits(device_bytes):
        return plan, whole
    largest = min(plan.run.samples_in_one_pass, plan.run.train.micro_batch or plan.run.samples_in_one_pass)
    single = replace_train(plan, micro_batch=1)
    one = measure(single)
    if not one.fits(device_bytes):
        return None
    per_sample = max(1.0, (whole.peak - one.peak) / max(1, largest - 1))
    guess = min(largest - 1, 1 + int((USABLE * device_bytes - one.peak) / per_sample))
    for size in range(guess, 1, -1):
        candidate = replace_train(plan, micro_batch=size)
        estimate = measure(candidate)
        if estimate.fits(device_bytes):
            return candidate, estimate
    return single, one


def fit_same_result(measure: Measure, plan: Plan, device_bytes: float) -> Fit | None:
    """Return a plan that fits and trains the same weights up to rounding; None if there is none.

    Micro-batches take no more work. Offloading takes copies between the devices, gradient checkpointing one more
    forward pass for each backward pass: each is used only if a single sample does not fit without it.
    """
    for changes in ({}, {"offload": True}, {"checkpointing": True}, {"offload": True, "checkpointing": True}):
        candidate = replace_train(plan, **changes)
        if changes and candidate == plan:
            continue
        if fit := fit_micro_batch(measure, candidate, device_bytes):
            return fit
    return None


def advise(measure: Measure, plan: Plan, device_bytes: float) -> Fit | None:
    """Return a plan that fits, as close to `plan` as possible; None if there is none.

    After the plans with the same result come 16-bit arithmetic, if the plan chooses a dtype, the published resolution,
    and half the resolution until it fits.
    """
    lower: Plan | None = plan
    while lower is not None:
        fit = fit_same_result(measure, lower, device_bytes)
        if fit is not None:
            return fit
        lower = _next_lower(lower)
    return None


def _next_lower(plan: Plan) -> Plan | None:
    if plan.dtype == "float32":
        return replace(plan, dtype="bfloat16")
    if plan.resolution > PUBLISHED_RESOLUTION:
        return replace(plan, resolution=PUBLISHED_RESOLUTION)
    return replace(plan, resolution=plan.resolution // 128 * 64) if plan.resolution >= 128 else None


def fit_cards(measure: Measure, plan: Plan, cards: Sequence[int] = CARD_SIZES) -> dict[int, Fit | None]:
    """Return `advise` for devices by their memory in GiB."""
    return {size: advise(measure, plan, size * GIB) for size in cards}


def choose_plan(mode: str, measure: Measure, plan: Plan, device_bytes: float | None) -> Plan:
    """Return the plan that a run uses, by the setting `memory`.

    Args:
        mode: auto: what fits with the same result, or the plan itself if nothing does; fast: the plan itself; low: one
            sample at a time, with gradient checkpointing and offloading.
        measure: estimates a plan.
        plan: the settings; a micro-batch that is set already is kept.
        device_bytes: memory for the run; None if it is not limited.
    """
    if mode == "low":
        return replace_train(plan, micro_batch=1, checkpointing=True, offload=True)
    if mode == "fast" or device_bytes is None or plan.run.train.micro_batch:
        return plan
    fit = fit_same_result(measure, plan, device_bytes)
    return fit[0] if fit else plan


def replace_train(plan: Plan, **changes: object) -> Plan:
    """Return a plan with some training settings changed."""
    return replace(plan, run=plan.run.replace(train=changes))


def describe_fit(start: Plan, fit: Fit | None) -> str:
    """Return a fit as a sentence: the settings that differ from `start`, and the memory."""
    if fit is None:
        return "no settings would fit"
    plan, estimate = fit
    changes = ", ".join(f"{name} {str(value).lower()}" for name, value in plan.changes(start).items())
    result = f"these settings would fit: {changes}" if changes else "it fits as it is"
    return f"{result} ({estimate.peak / GIB:.1f} GiB)"
