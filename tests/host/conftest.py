"""One running ComfyUI for all host tests, and the shipped workflows, run once at a small budget."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from local_hub import Hub, running
from safetensors.torch import load_file, save

from . import graphs
from .server import Server, find_host, host_python, missing_packages, required_packages

CHECKPOINT = graphs.CHECKPOINT
RELEASED = "church_unlearned"  # a folder of the hub
IN_CHECKPOINT = "cond_stage_model.transformer."
# In this order: `train` makes the encoder that the others load, and the host keeps its result for the graph after it.
WORKFLOWS = ("train", "before-and-after", "load-and-replace", "attack", "strength-sweep")


@pytest.fixture(scope="session")
def host() -> pathlib.Path:
    folder = find_host()
    if folder is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH, or put the pack into custom_nodes, or use ~/comfy/ComfyUI")
    if missing := missing_packages(folder, required_packages()):
        pytest.skip(f"ComfyUI's Python ({host_python(folder)}) lacks {', '.join(missing)}: install requirements.txt")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    from advunlearn.miniature import checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / CHECKPOINT
    checkpoint.write_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def hub(checkpoint: pathlib.Path) -> Iterator[Hub]:
    """A hub with one released encoder: the checkpoint's CLIP-L with another final norm."""
    state = {k.removeprefix(IN_CHECKPOINT): v for k, v in load_file(checkpoint).items() if k.startswith(IN_CHECKPOINT)}
    state = {k if k.startswith("text_model.") else "text_model." + k: v.clone() for k, v in state.items()}
    state["text_model.final_layer_norm.weight"] *= 1.25
    with running({f"{RELEASED}/config.json": b"{}", f"{RELEASED}/model.safetensors": save(state)}) as hub:
        yield hub


@pytest.fixture(scope="session")
def server(
    host: pathlib.Path, checkpoint: pathlib.Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    running = Server(host, tmp_path_factory.mktemp("comfy"), HF_ENDPOINT=hub.address)
    (running.base / "models" / "checkpoints" / CHECKPOINT).hardlink_to(checkpoint)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def base(server: Server) -> pathlib.Path:
    return server.base


@pytest.fixture(scope="session")
def workflows(server: Server) -> dict[str, dict[str, Any]]:
    """The outputs of the shipped workflows, by name."""
    return {name: server.run(graphs.small_workflow(name), timeout=1500) for name in WORKFLOWS}


@pytest.fixture(scope="session")
def encoder(workflows: dict[str, dict[str, Any]], base: pathlib.Path) -> pathlib.Path:
    """The file of the encoder that the workflow `train` made."""
    return base / "output" / "clip" / graphs.ENCODER
