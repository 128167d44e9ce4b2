"""The same run in the host and on the command line: the widened miniature as a checkpoint there, as a folder here."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from advunlearn.miniature import checkpoint

from .graphs import Graph, train_graph
from .server import PACK, Server, node

pytestmark = pytest.mark.host
TRAINING = {"mode": "advunlearn", "lr": 1e-3, "batch": 2, "retain_weight": 1.0, "retain_batch": 2}
BUDGET = {"cases": 2, "attack_steps": 1, "seed": 1000}
SETTINGS = {"judge_interval": 1, "attack_tokens": 3, "sampling_steps": 5, "guidance_scale": 3.0, "repeats": 0}
RETAINED = ["a dog", "a castle"]
NODE_ONLY = {"resolution", "save_name", "resume", "retain_prompts", "sample_every"}


def start_command(name: str, *words: str, **flags: Any) -> subprocess.Popen[str]:
    """Start a command of the library in a process of its own, next to the host's."""
    named = {key.replace("_", "-"): value for key, value in flags.items()}
    options = [word for k, v in named.items() if not isinstance(v, bool) for word in (f"--{k}", str(v))]
    options += [f"--{k}" if v else f"--no-{k}" for k, v in named.items() if isinstance(v, bool)]
    line = [sys.executable, "-m", "advunlearn", name, *words, *options, "--device", "cpu", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, cwd=PACK, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish_command(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a command and return its JSON."""
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr[-2000:]
    return json.loads(stdout)


def list_flags(graph: Graph) -> dict[str, Any]:
    """Return the flags that stand for the inputs of a graph's training node and of its settings nodes."""
    flags = {}
    for node_name, prefix in {"train": "", "training": "", "attack": "attack_", "bank": "bank_"}.items():
        inputs = graph[node_name]["inputs"].items()
        flags |= {prefix + k: v for k, v in inputs if not isinstance(v, list) and k not in NODE_ONLY}
    return flags


def counts(row: dict[str, Any]) -> dict[str, int]:
    """Return the judge's counts of one model."""
    success = {name: count["success"] for name, count in row["asr"].items()}
    return success | {name: c["correct"] for name, c in row["utility"].items() if isinstance(c, dict)}


def test_a_run_and_its_evaluation_agree_with_the_command_line(
    server: Server, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    wide = checkpoint.write_folder(tmp_path / "model")
    prompts = tmp_path / "retained.txt"
    prompts.write_text("\n".join(RETAINED))
    graph = train_graph("agree", retain_prompts="\n".join(RETAINED), iterations=3, training=TRAINING)
    flags = list_flags(graph)

    # The same settings, seeds and weights on the command line, at the same time.
    training = start_command("train", model=wide, out=tmp_path / "run", retain=prompts, **flags)
    trained = server.run(graph)
    encoder = base / "output" / "clip" / trained["name"]["text"][0]
    finish_command(training)
    start, in_host, on_command_line = (
        {k.removeprefix("text_model."): v.float() for k, v in load_file(file).items() if "projection" not in k}
        for file in (wide / "text_encoder" / "model.safetensors", encoder, tmp_path / "run" / "encoder.safetensors")
    )
    moved = torch.cat([(in_host[k] - start[k]).flatten() for k in in_host])
    apart = torch.cat([(in_host[k] - on_command_line[k]).flatten() for k in in_host])
    assert moved.norm() > 0
    assert apart.norm() < 0.05 * moved.norm(), (apart.norm() / moved.norm()).item()

    options = (
        BUDGET | SETTINGS | {"concept": "church", "judge": "miniature", "model": wide, "attacks": "unlearndiffatk"}
    )
    evaluation = start_command("evaluate", str(encoder), out=tmp_path / "report", **options)
    graph |= {
        "judge": node("AdvUnlearnLoadJudge", judge="miniature"),
        "evaluate": node(
            "AdvUnlearnEvaluate",
            model=("ckpt", 0),
            clip_before=("ckpt", 1),
            clip_after=("train", 0),
            vae=("ckpt", 2),
            judge=("judge", 0),
            concept="church",
            kind="object",
            attack="unlearndiffatk",
            resolution=0,
            prompts="",
            retained_prompts="",
            evaluation=("settings", 0),
            **BUDGET,
        ),
        "settings": node("AdvUnlearnEvaluationSettings", **SETTINGS),
        "scores": node("PreviewAny", source=("evaluate", 2)),
    }
    there = json.loads(server.run(graph)["scores"]["text"][0])["models"]
    here = finish_command(evaluation)["models"]
    for name, row in (("before", here["original"]), ("after", here[encoder.stem])):
        measured, expected = counts(there[name]), counts(row)
        assert measured.keys() == expected.keys()
        # An image on the judge's decision boundary may fall on either side: the host rounds its weights differently.
        assert all(abs(measured[k] - expected[k]) <= 1 for k in measured), (name, measured, expected)
    assert counts(there["after"])["clean"] < counts(there["before"])["clean"]
