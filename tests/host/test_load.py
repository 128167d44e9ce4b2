"""Load Robust CLIP in the real ComfyUI: folders, and the released encoders from a hub on this machine."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from local_hub import Hub
from safetensors.torch import save_file

from .conftest import CHECKPOINT, RELEASED
from .graphs import is_same_image, load_graph, sample_graph, sample_images
from .server import HostError, Server, node

pytestmark = pytest.mark.host


def list_choices(
    server: Server, name: str, kind: str = "AdvUnlearnLoadRobustCLIP", where: str = "required"
) -> list[str]:
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
    offered = list_choices(server, "encoder")
    assert name in offered and offered[-1] == "none" and not [o for o in offered if o.startswith(name) and o != name]
    before = sample_images(server, sample_graph())
    assert is_same_image(sample_images(server, load_graph(encoder=name)), before)
    # The file in it is accepted by its own name too, and a folder that is gone is refused before the graph runs.
    assert is_same_image(sample_images(server, load_graph(encoder=name + "model.safetensors")), before)
    with pytest.raises(HostError, match="'gone/' is not among the text encoders"):
        server.queue(load_graph(encoder="gone/"))
    with pytest.raises(HostError, match="no encoder is chosen: choose one under encoder"):
        server.run(load_graph())
    with pytest.raises(HostError, match="there is no released encoder 'cats'"):
        server.queue(load_graph(released="cats"))


def test_a_released_encoder_is_fetched_when_asked_for_with_progress_and_cancel(server: Server, hub: Hub) -> None:
    folder = server.base / "models" / "advunlearn" / RELEASED
    assert list_choices(server, "released", where="optional")[:3] == ["none", "nudity", "vangogh"]
    assert not hub.requests and not folder.exists()  # nothing is fetched at load
    hub.seconds = 20.0
    prompt_id = server.queue(load_graph(released="church"))
    server.wait_for_progress("robust", 20_000_000)
    server.request("interrupt", {})
    with pytest.raises(HostError, match="execution_interrupted"):
        server.wait(prompt_id)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    hub.seconds = 0.0
    robust = sample_images(server, load_graph(released="church"))
    assert not list(folder.glob("*.partial")) and (folder / "model.safetensors.sha256").is_file()
    assert f"{RELEASED}/" in list_choices(server, "encoder")
    assert f"{RELEASED}/model.safetensors" in json.dumps(server.get("object_info/CLIPLoader"))
    assert (robust - sample_images(server, sample_graph())).abs().mean() > 1e-3
    requests = len(hub.requests)
    assert is_same_image(sample_images(server, load_graph(encoder=f"{RELEASED}/")), robust)
    assert len(hub.requests) == requests


def test_what_the_hub_lacks_is_refused_in_one_sentence(server: Server) -> None:
    with pytest.raises(HostError, match="released encoder 'tench' could not be fetched .* into .*tench_unlearned"):
        server.run(load_graph(released="tench"))


@pytest.mark.parametrize("clip", [("ckpt", 1), None], ids=["with a CLIP", "without a CLIP"])
def test_refused_embeddings_are_read_as_text_and_the_input_keeps_its_own(
    server: Server, base: pathlib.Path, checkpoint: pathlib.Path, clip: tuple[str, int] | None
) -> None:
    encoder = base / "models" / "text_encoders" / "whole.safetensors"
    if not encoder.exists():
        encoder.hardlink_to(checkpoint)
    embedding = torch.full((1, 768), 0.05)
    save_file({"clip_l": embedding}, base / "models" / "embeddings" / "vector.safetensors")
    values = {"encoder": encoder.name, **({"clip": clip} if clip else {})}

    def draw(prompt: str, embeddings: str) -> torch.Tensor:
        graph = load_graph(prompt, **values, embeddings=embeddings)
        if clip is None:
            del graph["robust"]["inputs"]["clip"]
        return sample_images(server, graph)

    taken = draw("a embedding:vector", "allow")
    refused = draw("a embedding:vector", "refuse")
    assert (taken - refused).abs().mean() > 1e-3
    # The same tokens, written so that they are no embedding.
    assert is_same_image(refused, draw("a embedding : vector", "allow"))
    assert is_same_image(sample_images(server, sample_graph("a embedding:vector")), taken)
