"""Verify an encoder: compare its evaluation with thresholds, and hash everything that the result rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..config.verification import VerifyConfig
from ..errors import AdvUnlearnError
from ..formats.tensors import hash_tensors, hash_tree
from ..models.tokenizer import tokenize
from ..training.recipe import environment
from .evaluator import Evaluator
from .generation import Subject
from .metrics import Measurement, Row, count_with_interval
from .resume import describe_evaluation


def verify(
    evaluator: Evaluator,
    subject: Subject,
    attacks: Sequence[str],
    limits: VerifyConfig,
    *,
    resumed: Measurement | None = None,
    on_part: Callable[[Measurement], None] | None = None,
) -> Row:
    """Evaluate a model and compare it with thresholds.

    Args:
        evaluator: the evaluation.
        subject: the verified model.
        attacks: names of the attacks.
        limits: the thresholds.
        resumed, on_part: see `Evaluator.measure`.

    Returns:
        A JSON object: `passed`, `checks` (a row for each threshold), `sha256`, `settings`, `prompts`, `environment`,
        and the metrics.

    Raises AdvUnlearnError, before any work, if a threshold needs retained prompts and there are none.
    """
    if limits.min_retained and not any(row.object for row in evaluator.cases.retained):
        raise AdvUnlearnError(
            f"min_retained is {limits.min_retained}, but there are no retained prompts with a label; give some, "
            "one per line: prompt | label, or set min_retained to 0"
        )
    utility = limits.min_retained > 0
    measured = evaluator.measure(subject, attacks, utility, resumed=resumed, on_part=on_part)
    checks = check_thresholds(measured, attacks, limits)
    description = describe_evaluation(evaluator, subject)
    return {
        "passed": all(check["passed"] for check in checks),
        "concept": evaluator.concept.name,
        "checks": checks,
        "sha256": hash_basis(evaluator, subject, description) | {"limits": hash_tree(limits.to_dict())},
        "settings": description | {"limits": limits.to_dict()},
        "prompts": evaluator.cases.all_prompts(),
        "environment": environment(),
        "measured": measured.to_dict(),
    }


def check_thresholds(measured: Measurement, attacks: Sequence[str], limits: VerifyConfig) -> list[Row]:
    """Return a row for each threshold: what was counted, its rate and 95 % interval, the limit, and whether it is met.

    An evaluation with a warning does not pass: a model that generates nothing is not robust.
    """
    counts: dict[str, Row] = {what: measured.asr[what] for what in ("clean", "synonyms") if what in measured.asr}
    counts |= {name: measured.attacks[name]["sum"] for name in attacks}
    rows = []
    for what, count in counts.items():
        rate = count["success"] / count["total"]
        row = {"what": what, **count_with_interval(count["success"], count["total"])}
        rows.append(row | {"rate": rate, "at_most": limits.max_asr, "passed": rate <= limits.max_asr})
    if limits.min_retained:
        right, total = (measured.utility["retained_accuracy"][key] for key in ("correct", "total"))
        row = {"what": "retained", **count_with_interval(right, total)}
        passed = right / total >= limits.min_retained
        rows.append(row | {"rate": right / total, "at_least": limits.min_retained, "passed": passed})
    return rows + [{"what": "images", "warning": text, "passed": False} for text in measured.warnings]


def hash_basis(evaluator: Evaluator, subject: Subject, description: Row) -> Row:
    """Return SHA-256 hashes of what a verification rests on: weights, settings, prompts and their tokens.

    The judge's is the start of a hash. A denoiser that keeps its modules to itself is identified by its fingerprint.
    """
    model, prompts = evaluator.model, evaluator.cases.all_prompts()
    unets = {f"{i}.{k}": v for i, unet in enumerate(subject.denoiser.modules()) for k, v in unet.state_dict().items()}
    vae = model.vae_state()
    return {
        "encoder": description["subject"]["encoder"],
        "original_encoder": description["model"]["base"],
        "denoiser": hash_tensors(unets) if unets else subject.denoiser.fingerprint(),
        **({"vae": hash_tensors(vae)} if vae else {}),
        "judge": evaluator.judge.settings().get("weights"),
        "settings": hash_tree(description),
        "prompts": hash_tree(prompts),
        "tokens": hash_tree(tokenize(model.tokenizer, prompts)),
    }


def format_verification(result: Row) -> str:
    """Return a verification as lines of text, one for each threshold."""
    lines = [f"{result['concept']}: {'passed' if result['passed'] else 'FAILED'}"]
    for check in result["checks"]:
        mark = "ok" if check["passed"] else "FAILED"
        if "warning" in check:
            lines.append(f"  {mark:<8}{check['warning']}")
            continue
        low, high = check["interval"]
        limit = f"at most {check['at_most']}" if "at_most" in check else f"at least {check['at_least']}"
        count = f"{check['success']}/{check['total']}"
        lines.append(f"  {mark:<8}{check['what']:<18}{count:>9}  ({low:.2f} to {high:.2f}; {limit})")
    return "\n".join(lines)
