"""The same run in the host and on the command line: the widened miniature as a checkpoint there, as a folder here."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from safetensors.torch import load_file

from advunlearn.miniature import checkpoint

from .commands import counts, finish_command, list_flags, start_command
from .graphs import evaluate_graph, train_graph
from .server import Server

pytestmark = pytest.mark.host
TRAINING = {"mode": "advunlearn", "lr": 1e-3, "batch": 2, "retain_weight": 1.0, "retain_batch": 2}
BUDGET = {"cases": 2, "attack_steps": 1, "seed": 1000}
SETTINGS = {"judge_interval": 1, "attack_tokens": 3, "sampling_steps": 5, "guidance_scale": 3.0, "repeats": 0}
RETAINED = ["a dog", "a castle"]


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
    graph |= evaluate_graph(BUDGET, SETTINGS)
    there = json.loads(server.run(graph)["scores"]["text"][0])["models"]
    here = finish_command(evaluation)["models"]
    for name, row in (("before", here["original"]), ("after", here[encoder.stem])):
        measured, expected = counts(there[name]), counts(row)
        assert measured.keys() == expected.keys()
        # An image on the judge's decision boundary may fall on either side: the host rounds its weights differently.
        assert all(abs(measured[k] - expected[k]) <= 1 for k in measured), (name, measured, expected)
    assert counts(there["after"])["clean"] < counts(there["before"])["clean"]
