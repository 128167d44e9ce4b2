"""Shared pieces: the shipped miniature, loaded once."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
import torch
from attack_table import two_cases
from tiny_models import tiny_sd

from advunlearn import miniature
from advunlearn.attacks.base import AttackContext
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.loading import TextToImage, load

# Workers of pytest-xdist share the cores, and so does what they start.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one worker, with what they share; and those of the host, which one machine runs once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "host" if "tests/host/" in file else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def model() -> TextToImage:
    return load("miniature")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A model of the miniature's kind that is quicker and has random weights: for what does not look at pictures."""
    return tiny_sd(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: pathlib.Path) -> TextToImage:
    return load(str(tiny_folder))


@pytest.fixture(scope="session")
def judge() -> ConvJudge:
    return ConvJudge.from_pretrained(miniature.judge_path())


@pytest.fixture(scope="session")
def context(model: TextToImage) -> AttackContext:
    """Two cases to attack."""
    return two_cases(model)


@pytest.fixture
def concept() -> ConceptConfig:
    return ConceptConfig(concept="church")


@pytest.fixture
def small_bank() -> BankConfig:
    return BankConfig(trajectories=4, retain_trajectories=4, sampling_steps=4, dtype="float32")
