"""Find settings that fit into a device's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .plan import GIB, PUBLISHED_RESOLUTION, USABLE, Estimate, Plan

Measure = Callable[[Plan], Estimate]
Advice = tuple[Plan, Estimate]
CARDS = (24, 12, 8, 6)  # GiB


def advise(measure: Measure, plan: Plan, device_bytes: float) -> Advice | None:
    """Return the first plan on a ladder down from `plan` that fits, with its own estimate; None where none does.

    The ladder: the published resolution, 16-bit arithmetic where the plan names a dtype, gradient checkpointing, then
    smaller batches in the phases that are too large, then half the resolution. Every rung is measured.
    """
    estimate = measure(plan)
    while not estimate.fits(device_bytes):
        lower = _lower(plan, estimate, USABLE * device_bytes)
        if lower is None:
            return None
        plan, estimate = lower, measure(lower)
    return plan, estimate


def fitting(measure: Measure, plan: Plan, cards: Sequence[int] = CARDS) -> dict[int, Advice | None]:
    """Return `advise` for devices by their GiB, the largest first; each starts from the plan of the one before."""
    found: dict[int, Advice | None] = {}
    last: Advice | None = (plan, measure(plan))
    for size in cards:
        last = found[size] = advise(measure, last[0], size * GIB) if last else None
    return found


def _lower(plan: Plan, estimate: Estimate, usable: float) -> Plan | None:
    """Return the next lower plan, or None if there is none."""
    if plan.resolution > PUBLISHED_RESOLUTION:
        return replace(plan, resolution=PUBLISHED_RESOLUTION)
    if plan.dtype == "float32":
        return replace(plan, dtype="bfloat16")
    held = estimate.peak - max(estimate.activations.values())
    room = usable - held
    if room <= 0:
        return None
    attack, train = plan.run.attack, plan.run.train
    if not train.checkpointing and max(estimate.activations.get(p, 0) for p in ("attack", "inversion", "train")) > room:
        return replace(plan, run=plan.run.replace(train={"checkpointing": True}))
    for phase, activations in estimate.activations.items():
        if activations <= room:
            continue
        share = room / activations
        if phase == "attack":
            attack = replace(attack, restarts=_smaller(attack.restarts, share))
        elif phase == "inversion":
            attack = replace(attack, inversion_tokens=_smaller(attack.inversion_tokens, share))
        elif phase == "train":
            batch, retained = _smaller(train.batch, share), _smaller(train.retain_batch, share)
            train = replace(train, batch=batch, retain_batch=retained)
    if (attack, train) != (plan.run.attack, plan.run.train):
        return replace(plan, run=replace(plan.run, attack=attack, train=train))
    return replace(plan, resolution=plan.resolution // 128 * 64) if plan.resolution >= 128 else None


def _smaller(count: int, share: float) -> int:
    """Return the largest power of two up to that share of `count`, less than `count`, at least 1."""
    most = max(1, min(int(count * share), count - 1))
    return 1 << (most.bit_length() - 1)


def sentence(start: Plan, found: Advice | None) -> str:
    """Return advice as a sentence."""
    if found is None:
        return "no settings would fit"
    plan, estimate = found
    changes = ", ".join(f"{k} {str(v).lower()}" for k, v in plan.changes(start).items())
    fit = f"these settings would fit: {changes}" if changes else "it fits as it is"
    return f"{fit} ({estimate.peak / GIB:.1f} GiB)"
