"""Mode `official` equals the published trainer, of which five iterations were recorded: tests/data/published_run.json.

The trainer gets the recorded latents, timesteps, retained prompts and starting points of the attack. Its losses,
gradients, adversarial embeddings, predictions and weights must be the recorded ones. The record says how it was made.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from advunlearn.config.concept import ConceptConfig
from advunlearn.config.presets import preset_values
from advunlearn.config.quirks import OFFICIAL, quirk_names
from advunlearn.config.training import SECTIONS, RunConfig
from advunlearn.models.loading import TextToImage
from advunlearn.training import trainer as trainer_module
from advunlearn.training.bank import make_banks
from advunlearn.training.events import Progress
from advunlearn.training.official import PublishedSampler
from advunlearn.training.prompt_adversary import PromptAdversary
from advunlearn.training.trainer import Trainer

FOLDER = pathlib.Path(__file__).parents[1] / "data"
ROWS: list[dict[str, Any]] = json.loads((FOLDER / "published_run.json").read_text(encoding="utf-8"))["iterations"]
RECORD = load_file(FOLDER / "published_run.safetensors")
RETAINED = [prompt for row in ROWS for prompt in row["retain"]]
RUN = (
    RunConfig(concept=ConceptConfig(concept="church"))
    .replace(**{section: preset_values("object", section) for section in SECTIONS})
    .replace(concept={"kind": "prompt"}, train={"mode": "official", "iterations": 5, "warmup": 2}, attack={"steps": 5})
)
Seen = dict[str, list[Any]]


class Recorded(PublishedSampler):
    """The published sampler with the recorded timesteps and latents, in their order."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.draws = list(recorded_concept_draws() if self.sampler.anchored else recorded_retain_draws())

    def draw_timesteps(self, count: int) -> Tensor:
        assert self.sampler.anchored and count == 1  # the retained samples have the concept sample's timestep
        return torch.tensor([self.draws[0][0]])

    def sample_latents(self, cond: Tensor, noise: Tensor, k: int) -> Tensor:
        t, x_t = self.draws.pop(0)
        assert (k, noise.shape) == (t // 20, x_t.shape)
        return x_t


def recorded_concept_draws() -> list[tuple[int, Tensor]]:
    """Return timesteps and latents (1, C, h, w): of each iteration those of the attack, then those of training."""
    draws = []
    for i, row in enumerate(ROWS):
        attack_t = row.get("attack_t", [])
        draws += [(t, RECORD[f"{i}.attack.x_t"][j : j + 1]) for j, t in enumerate(attack_t)]
        draws.append((row["t"], RECORD[f"{i}.concept.x_t"]))
    return draws


def recorded_retain_draws() -> list[tuple[int, Tensor]]:
    """Return timesteps and latents (5, C, h, w) of each iteration."""
    return [(row["retain_t"][0], RECORD[f"{i}.retain.x_t"]) for i, row in enumerate(ROWS)]


def run_recorded(model: TextToImage, run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Trainer, Seen]:
    """Train on the record; return the trainer and what it had, by iteration."""
    seen: Seen = {"loss": [], "attack": [], "used": [], "gradient_norms": [], "noise_pred": []}
    starts = iter([RECORD[f"{i}.attack.start"] for i in (2, 3, 4)])
    monkeypatch.setattr(PromptAdversary, "starting_embeddings", lambda *_: next(starts))
    erase_loss = trainer_module.erase_loss

    def spy(predicted: Tensor, *args: Any) -> Tensor:
        seen["noise_pred"].append(predicted.detach())
        return erase_loss(predicted, *args)

    monkeypatch.setattr(trainer_module, "erase_loss", spy)
    banks = make_banks(model, run, RETAINED, torch.Generator().manual_seed(0), make=Recorded)
    trainer = Trainer(model, run, banks, RETAINED, torch.Generator())

    def note(progress: Progress) -> None:
        if progress.phase == "attack":
            seen["attack"].append(progress.losses["attack"])
            return
        seen["loss"].append(progress.losses)
        seen["used"].append(trainer.state.adversarial.get("prompt", {}).get("embeddings"))
        seen["gradient_norms"].append([p.grad.norm().item() for p in trainer.parameters])

    trainer.run(note)
    return trainer, seen


def weight_differences(model: TextToImage, trainer: Trainer) -> Tensor:
    """Return how far every 97th weight is from the recorded one after the last iteration."""
    pairs = zip(trainer.encoder.parameters(), model.text_encoder.parameters(), strict=True)
    trained = {id(parameter) for parameter in trainer.parameters}
    updates = [(new.detach() - old).flatten() for new, old in pairs if id(new) in trained]
    return (torch.cat(updates)[::97] - RECORD["4.update.every_97th"]).abs()


def test_official_is_the_published_trainer(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, seen = run_recorded(model, RUN, monkeypatch)
    for i, row in enumerate(ROWS):
        losses = {"loss": row["loss"], "erase": row["erase"], "retain": row["retain_loss"]}
        assert {name: seen["loss"][i][name] for name in losses} == pytest.approx(losses, abs=1e-7)
        # Processors sum the gradients in other orders: with MKL_CBWR=COMPATIBLE norms differ by 1.8e-6 of the largest.
        assert seen["gradient_norms"][i] == pytest.approx(row["gradient_norms"], abs=5e-6 * max(row["gradient_norms"]))
        assert (seen["noise_pred"][i] - RECORD[f"{i}.concept.noise_pred"]).abs().max() < 5e-6
    assert seen["attack"] == pytest.approx([loss for row in ROWS for loss in row.get("attack_losses", [])], abs=1e-7)
    for i in (2, 3, 4):
        assert (seen["used"][i] - RECORD[f"{i}.attack.used"]).abs().max() < 1e-6
    differences = weight_differences(model, trainer)
    assert differences.max() < 6e-6 and differences.mean() < 1e-10


def test_without_a_quirk_it_is_not(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    quirks = quirk_names(dataclasses.replace(OFFICIAL, result_before_last_step=False))
    _, seen = run_recorded(model, RUN.replace(train={"quirks": quirks, "iterations": 3}), monkeypatch)
    # The last step of Adam moves each coordinate by about the step size, 1e-3.
    assert (seen["used"][2] - RECORD["2.attack.used"]).abs().max() > 5e-4
    assert seen["attack"] == pytest.approx(ROWS[2]["attack_losses"], abs=1e-7)
