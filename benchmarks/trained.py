"""Trained models that several benchmarks measure: each is trained once and saved in `runs/benchmarks`.

All runs with one concept and seed start from the same bank, so that a model does not depend on which others were
trained. An encoder that `advunlearn train` wrote with the same settings can take the place of one in the folder.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from advunlearn.cli.commands.demo import RECIPES
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import RunConfig, TrainConfig
from advunlearn.evaluation.evaluator import Subject
from advunlearn.formats.text_encoders import save_encoder
from advunlearn.miniature import captions
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import TextToImage
from advunlearn.models.unet_files import load_unet, save_unet
from advunlearn.training.bank import Banks, make_banks
from advunlearn.training.trainer import train

FOLDER = pathlib.Path(__file__).parents[1] / "runs" / "benchmarks"
# The demo's recipes, and AdvUnlearn's with a part of the UNet in place of the text encoder.
MODELS: dict[str, RunConfig] = {
    **RECIPES,
    "advunlearn_xattn": RunConfig(train=TrainConfig(train_method="xattn")),
    "advunlearn_full": RunConfig(train=TrainConfig(train_method="full")),
}
TITLES = {
    "original": "original model",
    "esd": "ESD, UNet",
    "esd_text": "ESD, text encoder",
    "advunlearn": "AdvUnlearn",
    "advunlearn_no_retain": "AdvUnlearn without retain term",
    "advunlearn_xattn": "AdvUnlearn, UNet's cross-attention",
    "advunlearn_full": "AdvUnlearn, whole UNet",
}


def make_concept(name: str) -> ConceptConfig:
    """Return a concept of the miniature: a style or an object."""
    return ConceptConfig(concept=name, kind="style" if name in captions.styles() else "object")


class TrainedModels:
    """The models of one concept and seed.

    Args:
        model: the original model.
        concept: the erased concept.
        seed: seed of the training and of its bank.
        retain_prompts: the retained prompts in place of the miniature's.
        suffix: of the folder, for models with other retained prompts.
    """

    def __init__(
        self,
        model: TextToImage,
        concept: ConceptConfig,
        seed: int,
        retain_prompts: Sequence[str] | None = None,
        suffix: str = "",
    ) -> None:
        self.model = model
        self.concept = concept
        self.seed = seed
        self.folder = FOLDER / f"{concept.concept.replace(' ', '_')}{suffix}-{seed}"
        self.retain_prompts = retain_prompts or captions.retain_prompts(concept.names, concept.kind)

    def make_run(self, name: str) -> RunConfig:
        """Return the settings of a model."""
        return replace(MODELS[name], concept=self.concept).replace(train={"seed": self.seed})

    def get(self, name: str) -> tuple[Subject, float | None]:
        """Return a model and the seconds of its training if they are known; it is trained if it does not exist."""
        if name == "original":
            return Subject(self.model.text_encoder, self.model.denoiser), 0.0
        run = self.make_run(name)
        path = self.folder / f"{name}-{hash_run(run)}"
        if not path.exists():
            self.train(run, path)
        if run.train.unet_method:
            denoiser, metadata = load_unet(path, self.model.denoiser)
            return Subject(self.model.text_encoder, denoiser), json.loads(metadata.get("seconds", "null"))
        encoder, metadata = load_encoder(path / "encoder.safetensors", self.model.text_encoder)
        return Subject(encoder, self.model.denoiser), json.loads(metadata.get("seconds", "null"))

    def train(self, run: RunConfig, path: pathlib.Path) -> None:
        """Train a model and save what was trained in a folder."""
        banks = self.make_banks(run)
        start = time.perf_counter()
        result = train(self.model, run, self.retain_prompts, banks=banks)
        metadata = {"seconds": json.dumps(round(time.perf_counter() - start, 1))}
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        if run.train.unet_method:
            save_unet(unfinished, result.denoiser.unet, metadata)
        else:
            save_encoder(unfinished / "encoder.safetensors", result.encoder, metadata)
        unfinished.rename(path)

    def make_banks(self, run: RunConfig) -> Banks:
        """Return the banks of this concept and seed as they are when filled; they are saved."""
        generator = torch.Generator().manual_seed(self.seed)
        path = self.folder / f"bank-{hash_run(RunConfig(concept=self.concept, bank=run.bank))}.pt"
        if not path.exists():
            banks = make_banks(self.model, run, self.retain_prompts, generator)
            state = {name: bank.tensors() | bank.counters() for name, bank in banks.by_name().items()}
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save({"state": state, "generator": generator.get_state()}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        generator.set_state(saved["generator"])
        return make_banks(self.model, run, self.retain_prompts, generator, state=saved["state"])


def hash_run(run: RunConfig) -> str:
    """Return a short hash of a run's settings."""
    return hashlib.sha256(json.dumps(run.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
