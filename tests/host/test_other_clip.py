"""The CLIP before erasing, and the one that is compared, must be of the MODEL's family."""

from __future__ import annotations

import pathlib

import pytest

from .server import run_inside

pytestmark = pytest.mark.host


def test_a_second_clip_of_another_family_is_refused_by_attack_and_evaluation(host: pathlib.Path) -> None:
    answers = run_inside(host, "inside_other_clip.py", "-")
    says = "this MODEL is of another family and this CLIP is SDXL's; connect both from the same checkpoint"
    assert answers == {"attack": says, "evaluation": says}
