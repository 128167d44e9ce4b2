"""Load Robust CLIP in the real ComfyUI: folders, and the released encoders from a hub on this machine."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from local_hub import Hub, running
from safetensors.torch import load_file, save

from .conftest import CHECKPOINT
from .server import HostError, Server, node
from .test_nodes import graph, is_same_picture, pictures

pytestmark = pytest.mark.host
FOLDER = "church_unlearned"
IN_CHECKPOINT = "cond_stage_model.transformer."


def loaded(**values: Any) -> dict[str, Any]:
    """Text to image with what Load Robust CLIP makes of the checkpoint's CLIP."""
    values = {"encoder": "none", "strength": 1.0, "clip": ("ckpt", 1), **values}
    return graph(clip=("robust", 0)) | {"robust": node("AdvUnlearnLoadRobustCLIP", **values)}


def choices(server: Server, name: str, kind: str = "AdvUnlearnLoadRobustCLIP", where: str = "required") -> list[str]:
    """Return what a node offers under an input."""
    spec = server.get("object_info/" + kind)[kind]["input"][where][name]
    return spec[1]["options"] if spec[0] == "COMBO" else spec[0]


def test_a_folder_that_was_saved_is_offered_at_once_and_draws_the_same(server: Server, base: pathlib.Path) -> None:
    saved = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "save": node("AdvUnlearnSaveRobustCLIP", clip=("ckpt", 1), name="sub/folder", format="diffusers", rank=8),
        "name": node("PreviewAny", source=("save", 0)),
    }
    name = server.run(saved)["name"]["text"][0]
    assert name == "sub/folder_00001_/" and (base / "output" / "clip" / name / "config.json").is_file()
    offered = choices(server, "encoder")
    assert name in offered and offered[-1] == "none" and not [o for o in offered if o.startswith(name) and o != name]
    before = pictures(server, server.run(graph()))
    assert is_same_picture(pictures(server, server.run(loaded(encoder=name))), before)
    # The file in it is accepted by its own name too, and a folder that is gone is refused before the graph runs.
    assert is_same_picture(pictures(server, server.run(loaded(encoder=name + "model.safetensors"))), before)
    with pytest.raises(HostError, match="'gone/' is not among the text encoders"):
        server.queue(loaded(encoder="gone/"))
    with pytest.raises(HostError, match="choose an encoder, or a released one"):
        server.queue(loaded())
    with pytest.raises(HostError, match="no released encoder is called 'cats'"):
        server.queue(loaded(released="cats"))


@pytest.fixture(scope="module")
def hub(server: Server) -> Iterator[Hub]:
    """A hub with one encoder: the checkpoint's own CLIP-L, a little louder."""
    state = load_file(server.base / "models" / "checkpoints" / CHECKPOINT)
    own = {k.removeprefix(IN_CHECKPOINT): v for k, v in state.items() if k.startswith(IN_CHECKPOINT)}
    own = {k if k.startswith("text_model.") else "text_model." + k: v.clone() for k, v in own.items()}
    own["text_model.final_layer_norm.weight"] *= 1.25
    with running({f"{FOLDER}/config.json": b"{}", f"{FOLDER}/model.safetensors": save(own)}) as hub:
        yield hub


@pytest.fixture(scope="module")
def online(server: Server, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second server, for which that hub is the hub."""
    other = Server(server.host, tmp_path_factory.mktemp("online"), HF_ENDPOINT=hub.address)
    os.link(server.base / "models" / "checkpoints" / CHECKPOINT, other.base / "models" / "checkpoints" / CHECKPOINT)
    try:
        other.start()
        yield other
    finally:
        other.stop()


def test_a_released_encoder_is_fetched_when_asked_for_with_progress_and_cancel(online: Server, hub: Hub) -> None:
    folder = online.base / "models" / "advunlearn" / FOLDER
    assert choices(online, "released", where="optional")[:3] == ["none", "nudity", "vangogh"]
    assert not hub.requests and not folder.exists()  # nothing is fetched at load
    hub.seconds = 20.0
    prompt_id = online.queue(loaded(released="church"))
    online.wait_for_progress("robust", 20_000_000)
    online.request("interrupt", {})
    with pytest.raises(HostError, match="execution_interrupted"):
        online.wait(prompt_id)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    hub.seconds = 0.0
    robust = pictures(online, online.run(loaded(released="church")))
    assert not list(folder.glob("*.partial")) and (folder / "model.safetensors.sha256").is_file()
    assert f"{FOLDER}/" in choices(online, "encoder")
    assert f"{FOLDER}/model.safetensors" in json.dumps(online.get("object_info/CLIPLoader"))
    assert (robust - pictures(online, online.run(graph()))).abs().mean() > 1e-3
    requests = len(hub.requests)
    assert is_same_picture(pictures(online, online.run(loaded(encoder=f"{FOLDER}/"))), robust)
    assert len(hub.requests) == requests


def test_what_the_hub_lacks_is_refused_in_one_sentence(online: Server) -> None:
    with pytest.raises(HostError, match="released encoder 'tench' could not be fetched .* into .*tench_unlearned"):
        online.run(loaded(released="tench"))
