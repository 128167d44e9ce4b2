from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from .server import Server, find_host

CHECKPOINT = "miniature.safetensors"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    host = find_host()
    if host is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH, or put the pack into custom_nodes, or use ~/comfy/ComfyUI")
    running = Server(host, tmp_path_factory.mktemp("comfy"))
    from advunlearn.miniature import checkpoint

    checkpoint.write(running.base / "models" / "checkpoints" / CHECKPOINT)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def base(server: Server) -> pathlib.Path:
    return server.base
