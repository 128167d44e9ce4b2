"""An evaluation that was interrupted goes on: what was measured of a subject is on disk after each of its parts."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..config.base import first_difference
from ..errors import AdvUnlearnError
from ..files import MEASURED, write_atomic
from ..formats.text_encoders import hash_encoder
from .evaluator import Evaluator
from .measurement import Measurement, Subject


def described(evaluator: Evaluator, subject: Subject) -> dict[str, Any]:
    """Return what a subject's numbers depend on, but for which attacks are asked for."""
    return {
        "concept": evaluator.concept.to_dict(),
        "config": evaluator.config.to_dict(),
        "evaluation": evaluator.described(),
        "attacks": {k: dict(v) for k, v in evaluator.given.items() if v},
        "model": evaluator.model.fingerprints(),
        "subject": {"encoder": hash_encoder(subject.encoder.state_dict()), "denoiser": subject.denoiser.fingerprint()},
    }


def of_measured(about: Mapping[str, Any], measured: Measurement) -> dict[str, Any]:
    """Return what was `described` without the settings of attacks that were not measured."""
    attacks = {name: given for name, given in about["attacks"].items() if name in measured.attacks}
    unused = () if "synonym_search" in measured.attacks else ("own_routes",)
    evaluation = {k: v for k, v in about["evaluation"].items() if k not in unused}
    return {**about, "attacks": attacks, "evaluation": evaluation}


class EvaluationCache:
    """What was measured of one subject, in a file of a folder."""

    def __init__(self, folder: pathlib.Path, name: str, about: Mapping[str, Any]) -> None:
        # Two encoders may go by one name: which it is tells the hash.
        which = hashlib.sha256(json.dumps(about["subject"], sort_keys=True).encode()).hexdigest()[:8]
        self.label = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}-{which}"
        self.path = folder / (self.label + MEASURED)
        self.about = dict(about)

    def load(self) -> Measurement:
        """Return what is there; nothing measured where there is no file.

        Raises AdvUnlearnError when that is of other settings; those of an attack that was not measured do not count.
        """
        if not self.path.is_file():
            return Measurement()
        try:
            saved = torch.load(self.path, weights_only=True)
            about, measured = saved["about"], Measurement(**saved["measurement"])
        except Exception as error:  # what unpickling a broken file raises is anyone's guess
            raise AdvUnlearnError(f"{self.path} cannot be read ({error}); delete it, or leave --resume out") from error
        if difference := first_difference(of_measured(about, measured), of_measured(self.about, measured)):
            raise AdvUnlearnError(
                f"{self.path} was measured with other settings: {difference}; give the same ones, another --out, or "
                "leave --resume out to begin anew"
            )
        return measured

    def save(self, measured: Measurement) -> None:
        """Write what was measured so far."""
        kept = {"about": self.about, "measurement": vars(measured)}
        write_atomic(self.path, lambda file: torch.save(kept, file))
