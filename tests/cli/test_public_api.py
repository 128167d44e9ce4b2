"""The public API, and README's example of it."""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

import advunlearn

ROOT = pathlib.Path(__file__).parents[2]


def read_example() -> str:
    """Return README's only block of Python."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    assert len(advunlearn.__all__) == len(set(advunlearn.__all__)) > 10
    for name in advunlearn.__all__:
        value = getattr(advunlearn, name)
        assert value is getattr(importlib.import_module(value.__module__), name)
        assert name in dir(advunlearn)
    with pytest.raises(AttributeError, match="no attribute 'unlearn'"):
        getattr(advunlearn, "unlearn")  # noqa: B009


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, advunlearn; advunlearn.RunConfig()\n"
    code += "print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_readmes_example_is_short_and_runs(tmp_path: pathlib.Path) -> None:
    example = read_example()
    assert len([line for line in example.splitlines() if line.strip()]) <= 8
    # A shorter run; all else is as it stands there.
    settings = "train=TrainConfig(iterations=1, warmup=0, batch=2, retain_batch=2), attack=AdversaryConfig(steps=1), "
    settings += "bank=BankConfig(trajectories=2, retain_trajectories=2, sampling_steps=2)"
    short, changes = re.subn(r"(RunConfig\(.*)\)\n", rf"\1, {settings})\n", example)
    assert changes == 1
    code = f"from advunlearn import AdversaryConfig, BankConfig, TrainConfig\n{short}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    encoder, metadata = advunlearn.load_encoder(tmp_path / "encoder.safetensors", advunlearn.load().text_encoder)
    assert encoder.config.num_hidden_layers == 4 and "church" in metadata["advunlearn.recipe"]
