"""SDXL's CLIP where it does not belong: next to one of another family, and in attacks on one text encoder."""

from __future__ import annotations

import pathlib

import pytest

from .server import run_inside

pytestmark = pytest.mark.host


def test_sdxls_clip_is_refused_where_it_does_not_belong(host: pathlib.Path) -> None:
    answers = run_inside(host, "inside_other_clip.py", "-")
    says = "this MODEL is of another family and this CLIP is SDXL's; connect both from the same checkpoint"
    lora = "one of clip and base is SDXL's, the other is not; connect the CLIP before training to base"
    one = (
        "pez needs a model with one text encoder, as Stable Diffusion 1.x has, and this CLIP is SDXL's; choose another"
    )
    assert answers == {"attack": says, "evaluation": says, "one encoder": f"{one} attack", "lora": lora}
