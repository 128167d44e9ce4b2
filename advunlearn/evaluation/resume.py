"""Resume an interrupted evaluation: each part of a subject's measurement is saved when it is finished."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping

import torch

from ..config.base import first_difference
from ..config.renamed import RENAMED_ATTACKS
from ..errors import AdvUnlearnError
from ..files import MEASURED, write_atomic
from ..formats.tensors import hash_tree
from ..formats.text_encoders import hash_encoder
from .evaluator import SYNONYM_ATTACK, Evaluator
from .generation import Subject
from .metrics import Measurement, Row

# Names in the files of earlier versions, and the current ones.
OLD_FIELDS = {"pictures": "images"}
OLD_RESULTS = {"asr": {"routes": "synonyms"}, "cases": {"other_routes": "synonyms", **RENAMED_ATTACKS}}
OLD_SETTINGS = {"own_routes": "own_synonyms"}


def describe_evaluation(evaluator: Evaluator, subject: Subject) -> Row:
    """Return all settings that a subject's metrics depend on, except the choice of attacks."""
    return {
        "concept": evaluator.concept.to_dict(),
        "config": evaluator.config.to_dict(),
        "evaluation": evaluator.describe(),
        "attacks": {name: dict(settings) for name, settings in evaluator.inputs.attack_settings.items() if settings},
        "model": evaluator.model.fingerprints(),
        "subject": {"encoder": hash_encoder(subject.encoder.state_dict()), "denoiser": subject.denoiser.fingerprint()},
    }


def select_relevant(settings: Mapping[str, Row], measured: Measurement) -> Row:
    """Return the result of `describe_evaluation` without the settings of attacks that were not run."""
    attacks = {name: each for name, each in settings["attacks"].items() if name in measured.attacks}
    unused = () if SYNONYM_ATTACK in measured.attacks else ("own_synonyms",)
    evaluation = {key: value for key, value in settings["evaluation"].items() if key not in unused}
    return {**settings, "attacks": attacks, "evaluation": evaluation}


def _rename_keys(values: Row, names: Mapping[str, str]) -> Row:
    return {names.get(key, key): value for key, value in values.items()}


def convert_old(saved: Row) -> Row:
    """Return what was saved, perhaps by an earlier version, with the current names."""
    measurement = {
        name: _rename_keys(values, OLD_RESULTS.get(name, RENAMED_ATTACKS)) if isinstance(values, dict) else values
        for name, values in _rename_keys(saved["measurement"], OLD_FIELDS).items()
    }
    settings = dict(saved["about"])
    settings["evaluation"] = _rename_keys(settings["evaluation"], OLD_SETTINGS)
    settings["attacks"] = _rename_keys(settings["attacks"], RENAMED_ATTACKS)
    return {"about": settings, "measurement": measurement}


class EvaluationCache:
    """The measurement of one subject in a file of a folder.

    Args:
        folder: the evaluation's folder.
        name: the subject's name; two subjects of the same name have different files.
        settings: the result of `describe_evaluation`.
    """

    def __init__(self, folder: pathlib.Path, name: str, settings: Mapping[str, Row]) -> None:
        subject = hashlib.sha256(json.dumps(settings["subject"], sort_keys=True).encode()).hexdigest()[:8]
        self.label = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}-{subject}"
        self.path = folder / (self.label + MEASURED)
        self.settings = dict(settings)

    def load(self) -> Measurement:
        """Return the saved measurement; an empty one if there is no file.

        Raises AdvUnlearnError if it was made with other settings, or is damaged. Settings of attacks that were not run
        are ignored.
        """
        if not self.path.is_file():
            return Measurement()
        try:
            content = torch.load(self.path, weights_only=True)
            self._require_intact(content)
            saved = convert_old(content)
            measured = Measurement(**saved["measurement"])
        except AdvUnlearnError:
            raise
        except Exception as error:  # unpickling a damaged file may raise anything
            raise AdvUnlearnError(f"{self.path} cannot be read ({error}); delete it, or leave --resume out") from error
        before = select_relevant(saved["about"], measured)
        now = select_relevant(self.settings, measured)
        if difference := first_difference(before, now):
            raise AdvUnlearnError(
                f"{self.path} was measured with other settings: {difference}; give the same settings or another --out, "
                "or leave --resume out to start again"
            )
        return measured

    def _require_intact(self, content: Row) -> None:
        """Raise AdvUnlearnError if the content has another SHA-256 than was saved; old files have none."""
        digest = content.pop("sha256", None)
        if digest is not None and hash_tree(content) != digest:
            raise AdvUnlearnError(
                f"{self.path} is damaged: its SHA-256 is not the one that was saved; delete it, or leave --resume out"
            )

    def save(self, measured: Measurement) -> None:
        """Save a measurement, complete or not."""
        content: Row = {"about": self.settings, "measurement": vars(measured)}
        content["sha256"] = hash_tree(content)
        write_atomic(self.path, lambda file: torch.save(content, file))
