"""`advunlearn verify`: attack an encoder and compare the result with thresholds; for scripts and CI."""

from __future__ import annotations

import pathlib
from argparse import Namespace

from ...config.attacks import choose_attacks
from ...config.verification import VERIFY_BUDGETS, VerifyConfig
from ...evaluation.evaluator import Subject
from ...evaluation.resume import EvaluationCache, describe_evaluation
from ...evaluation.verification import format_verification, verify
from ...files import compute_digest
from ...reporting.report import write_json
from ..flags import settings
from ..folder_lock import lock_folder
from ..inputs import command_line, load_trained_encoder, make_out_folder
from .evaluate import make_evaluator, make_progress
from .output import print_result

FILE_NAME = "verification.json"
FAILED = 1  # the exit code of an encoder that misses a threshold


def run(args: Namespace) -> int:
    """Verify an encoder, write verification.json, and return the exit code: 0 if it passes, otherwise 1."""
    limits, budget = settings(VerifyConfig, args), VERIFY_BUDGETS[args.budget]
    model, evaluator = make_evaluator(args, **budget.settings)
    subject = Subject(load_trained_encoder(args.encoder, model), model.denoiser)
    attacks = choose_attacks(args.attacks or budget.attacks, evaluator.find_missing)
    folder = make_out_folder(args)
    with lock_folder(folder):
        cache = EvaluationCache(folder, "encoder", describe_evaluation(evaluator, subject))
        bar, evaluator.on_progress = make_progress("verify")
        resumed = cache.load() if args.resume else None
        result = verify(evaluator, subject, attacks, limits, resumed=resumed, on_part=cache.save)
        bar.close()
        path = pathlib.Path(args.encoder)
        if path.is_file():
            result["sha256"]["encoder_file"] = compute_digest(path)
        result |= {"encoder": args.encoder, "budget": args.budget, "command": command_line()}
        write_json(folder / FILE_NAME, result)
    print_result(args, result, f"{format_verification(result)}\nwrote {folder / FILE_NAME}")
    return 0 if result["passed"] else FAILED
