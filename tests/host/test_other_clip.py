"""Two CLIPs that are used together must be of one family."""

from __future__ import annotations

import pathlib

import pytest

from .server import run_inside

pytestmark = pytest.mark.host


def test_a_second_clip_of_another_family_is_refused(host: pathlib.Path) -> None:
    answers = run_inside(host, "inside_other_clip.py", "-")
    says = "this MODEL is of another family and this CLIP is SDXL's; connect both from the same checkpoint"
    lora = "one of clip and base is SDXL's, the other is not; connect the CLIP before training to base"
    assert answers == {"attack": says, "evaluation": says, "lora": lora}
