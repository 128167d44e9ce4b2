"""Further UNets for the miniature's text encoder: what the tool changes, and that the library reads it."""

from __future__ import annotations

import pathlib
import sys
from types import ModuleType

import pytest
import torch

from advunlearn import load
from advunlearn.miniature import captions
from advunlearn.models.diffusers_denoiser import DiffusersDenoiser
from advunlearn.models.unet_files import load_unet

TOOLS = pathlib.Path(__file__).parents[2] / "tools" / "miniature"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, with trajectories of two steps and two objects."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import further_unets

    monkeypatch.setattr(further_unets, "SAMPLING_STEPS", 2)
    monkeypatch.setattr(captions, "objects", lambda: ["church", "castle"])
    return further_unets


def make_unet(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, out: pathlib.Path, *args: str) -> list[torch.Tensor]:
    """Run the tool; return the change of each weight of the UNet."""
    monkeypatch.setattr(sys, "argv", ["further_unets.py", args[0], str(out), *args[1:]])
    tool.main()
    original = load("miniature").denoiser
    assert isinstance(original, DiffusersDenoiser)
    made, _ = load_unet(out, original)
    pairs = zip(made.unet.parameters(), original.unet.parameters(), strict=True)
    return [(new - old).detach() for new, old in pairs]


def test_fine_tuning_trains_every_weight(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    size = ("--steps", "1", "--batch", "2", "--repeats", "1", "--lr", "1e-3")
    changes = make_unet(tool, monkeypatch, tmp_path / "tuned", "fine-tune", *size)
    assert all(change.any() for change in changes)
    assert max(change.abs().max().item() for change in changes) < 2e-3  # Adam's first step is lr, and a little decay


def test_noise_is_in_standard_deviations_of_each_weight(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    changes = make_unet(tool, monkeypatch, tmp_path / "noisy", "perturb", "--noise", "0.1")
    denoiser = load("miniature").denoiser
    assert isinstance(denoiser, DiffusersDenoiser)
    large = [(c.std(), w.std()) for c, w in zip(changes, denoiser.unet.parameters(), strict=True) if c.numel() > 10_000]
    assert len(large) > 20
    assert all(0.09 < change / weight < 0.11 for change, weight in large)
