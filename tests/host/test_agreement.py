"""The same run in the host and on the command line: the widened miniature as a checkpoint there, as a folder here."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from advunlearn.miniature import checkpoint

from .server import PACK, Server, node
from .test_nodes import train_graph

pytestmark = pytest.mark.host
MEASURE = {
    "cases": 6,
    "attack_steps": 4,
    "judge_interval": 2,
    "attack_tokens": 3,
    "sampling_steps": 8,
    "guidance_scale": 3.0,
    "repeats": 0,
    "seed": 1000,
}
RETAINED = ["a dog", "a castle", "a photo of a house"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return checkpoint.write_folder(tmp_path_factory.mktemp("wide") / "model")


def command(name: str, *words: str, **flags: Any) -> dict[str, Any]:
    """Run a command of the library in a process of its own; return its JSON."""
    named = {k.replace("_", "-"): v for k, v in flags.items()}
    options = [word for k, v in named.items() if not isinstance(v, bool) for word in (f"--{k}", str(v))]
    options += [f"--{k}" if v else f"--no-{k}" for k, v in named.items() if isinstance(v, bool)]
    line = [sys.executable, "-m", "advunlearn", name, *words, *options, "--device", "cpu", "--json"]
    done = subprocess.run(line, cwd=PACK, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def counts(row: dict[str, Any]) -> dict[str, int]:
    """Return what the judge counted."""
    found = {name: count["success"] for name, count in row["asr"].items()}
    return found | {name: c["correct"] for name, c in row["utility"].items() if isinstance(c, dict)}


@pytest.mark.parametrize("mode", ["esd", "advunlearn"])
def test_a_run_and_its_measurement_agree_with_the_command_line(
    server: Server, base: pathlib.Path, wide: pathlib.Path, tmp_path: pathlib.Path, mode: str
) -> None:
    changes = {"mode": mode, "iterations": 10, "retain_weight": 1.0, "retain_prompts": "\n".join(RETAINED)}
    graph = train_graph(f"agree_{mode}", **changes) | {
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
            attack="both",
            resolution=64,
            **MEASURE,
        ),
        "scores": node("PreviewAny", source=("evaluate", 2)),
    }
    outputs = server.run(graph, timeout=1200)
    there = json.loads(outputs["scores"]["text"][0])["models"]
    encoder = base / "output" / "clip" / outputs["name"]["text"][0]

    # The same settings, seeds and weights on the command line: first the training, then the judge's counts.
    prompts = tmp_path / "retained.txt"
    prompts.write_text("\n".join(RETAINED))
    given = graph["train"]["inputs"]
    skip = {"preset", "retain_set", "resolution", "save_name", "resume", "retain_prompts", "sample_every", "dtype"}
    flags = {k: v for k, v in given.items() if not isinstance(v, list) and k not in skip}
    command("train", model=wide, out=tmp_path / "run", retain=prompts, **flags)
    start, trained, own = (
        {k.removeprefix("text_model."): v.float() for k, v in load_file(file).items() if "projection" not in k}
        for file in (wide / "text_encoder" / "model.safetensors", encoder, tmp_path / "run" / "encoder.safetensors")
    )
    moved = torch.cat([(trained[k] - start[k]).flatten() for k in trained])
    apart = torch.cat([(trained[k] - own[k]).flatten() for k in trained])
    assert moved.norm() > 0
    assert apart.norm() < 0.05 * moved.norm(), (apart.norm() / moved.norm()).item()

    options = MEASURE | {"concept": "church", "judge": "miniature", "model": wide}
    here = command("evaluate", str(encoder), out=tmp_path / "report", **options)["models"]
    for name, row in (("before", here["original"]), ("after", here[encoder.stem])):
        found, expected = counts(there[name]), counts(row)
        assert found.keys() == expected.keys()
        # A picture on the judge's border may fall either way: the host rounds its weights elsewhere.
        assert all(abs(found[k] - expected[k]) <= 1 for k in found), (name, found, expected)
    assert counts(there["after"])["clean"] < counts(there["before"])["clean"]
