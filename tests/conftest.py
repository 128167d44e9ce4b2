"""Shared pieces: the shipped miniature, loaded once."""

from __future__ import annotations

import os

import pytest
import torch
from attack_table import two_cases

from advunlearn import miniature
from advunlearn.attacks.base import Scene
from advunlearn.config import BankConfig, ConceptConfig
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models import TextToImage, load

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture(scope="session")
def model() -> TextToImage:
    return load("miniature")


@pytest.fixture(scope="session")
def judge() -> ConvJudge:
    return ConvJudge.from_pretrained(miniature.judge_path())


@pytest.fixture(scope="session")
def scene(model: TextToImage) -> Scene:
    """Two cases to attack."""
    return two_cases(model)


@pytest.fixture
def concept() -> ConceptConfig:
    return ConceptConfig(concept="church")


@pytest.fixture
def small_bank() -> BankConfig:
    return BankConfig(trajectories=4, retain_trajectories=4, sampling_steps=4, dtype="float32")
