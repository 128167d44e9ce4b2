"""The memory of a denoiser's pass: measured once, and right for every number of samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advunlearn.memory.fake_tensors import LiveMemory, fake_copy
from advunlearn.memory.passes import PASS_SAMPLES, Affine, PassRecorder, Peak, measure_pass
from advunlearn.models.meta_model import skeleton

CPU = torch.device("cpu")


def test_a_peak_is_the_largest_of_its_functions() -> None:
    peak = Peak()
    for function in (Affine(10, 1), Affine(5, 1), Affine(2, 3), Affine(10, 0)):
        peak.include(function)
    assert peak.functions == [Affine(10, 1), Affine(2, 3)]  # the others are never the largest
    assert (peak(1), peak(5)) == (11, 17)


def test_storages_that_grow_with_the_samples_are_told_from_weights() -> None:
    recorder = PassRecorder(PASS_SAMPLES, linear=True)
    recorder.change(PASS_SAMPLES * 40)
    recorder.change(1000)
    assert recorder.held == Affine(1000, 40)
    recorder.change(-1000)
    assert recorder.held == Affine(0, 40) and recorder.peak(2) == 1080
    exact = PassRecorder(PASS_SAMPLES, linear=False)
    exact.change(PASS_SAMPLES * 40)
    assert exact.held == Affine(PASS_SAMPLES * 40)


@pytest.mark.parametrize(("dtype", "checkpointing"), [(torch.float32, False), (torch.float16, True)])
def test_one_measured_pass_is_right_for_any_number_of_samples(
    tiny_folder: Any, dtype: torch.dtype, checkpointing: bool
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = skeleton(str(tiny_folder), CPU, dtype)
    width = (77, model.text_encoder.config.hidden_size)  # type: ignore[union-attr]
    with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as live:
        denoiser = model.denoiser.with_modules(fake_copy)
        before = live.live
        for gradients in (False, True):
            any_number = measure_pass(denoiser, live, width, gradients, checkpointing)
            for count in (1, 20):
                exact = measure_pass(denoiser, live, width, gradients, checkpointing, count)
                for part in ("forward", "held", "backward"):
                    assert getattr(any_number, part)(count) == getattr(exact, part)(count), (gradients, count, part)
        assert live.live == before
