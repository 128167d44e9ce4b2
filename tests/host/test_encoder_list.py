"""The encoders that Load Robust CLIP offers, the newest of a name, and what it says of a file."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file, save_file

from .graphs import is_same_image, load_graph, sample_images, train_graph
from .server import HostError, Server, node
from .test_load import list_choices

pytestmark = pytest.mark.host
NORM = "text_model.final_layer_norm.weight"
IN_CHECKPOINT = "cond_stage_model.transformer."
COUNT = {"success": 1, "total": 6}


@pytest.fixture
def saved(base: pathlib.Path, checkpoint: pathlib.Path) -> Iterator[list[pathlib.Path]]:
    """Three versions of one encoder, of which two are in the host's folder, and a model of another kind."""
    whole = load_file(checkpoint)
    state = {k.removeprefix(IN_CHECKPOINT): v for k, v in whole.items() if k.startswith(IN_CHECKPOINT)}
    state = {k if k.startswith("text_model.") else "text_model." + k: v for k, v in state.items()}
    folder = base / "output" / "clip"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"listed_{number:05}_.safetensors" for number in (9, 10, 11)]
    metadata = {"advunlearn.concept": "church", "advunlearn.scores": json.dumps({"asr": {"clean": COUNT}})}
    for scale, file in zip((0.8, 1.2, 1.5), files, strict=True):
        save_file(state | {NORM: state[NORM] * scale}, file, metadata)
    (folder / "listed_00011_.safetensors").rename(folder / "hidden")
    other = folder / "a_t5.safetensors"
    save_file({"shared.weight": torch.zeros(8, 4096)}, other)
    intermediate = [folder / f"listed_{kind}_00001_.safetensors" for kind in ("at_20", "last_good")]
    for path in intermediate:
        path.hardlink_to(files[0])
    yield files
    for path in (*files, *intermediate, other, folder / "hidden"):
        path.unlink(missing_ok=True)


def test_clip_l_comes_before_other_models_and_the_newest_of_a_name_before_both(
    server: Server, saved: list[pathlib.Path]
) -> None:
    offered = list_choices(server, "encoder")
    assert offered.index("newest of listed") < offered.index(saved[0].name) < offered.index("a_t5.safetensors")
    assert offered[-1] == "none" and "listed_at_20_00001_.safetensors" in offered
    assert not {"newest of listed_at_20", "newest of listed_last_good"} & set(offered)


def test_the_newest_of_a_name_is_looked_up_at_every_run_and_reported(server: Server, saved: list[pathlib.Path]) -> None:
    graph = load_graph(encoder="newest of listed") | {"report": node("PreviewAny", source=("robust", 1))}
    report = server.run(graph)["report"]["text"][0].splitlines()
    assert report[0] == f"newest of listed ({saved[1].name})"
    assert "concept: church (object)" in report and "the concept came back: clean 1 of 6" in report
    before = sample_images(server, graph)
    assert is_same_image(before, sample_images(server, load_graph(encoder=saved[1].name)))
    (saved[2].parent / "hidden").rename(saved[2])
    after = sample_images(server, graph)
    assert is_same_image(after, sample_images(server, load_graph(encoder=saved[2].name)))
    assert not is_same_image(after, before)
    with pytest.raises(HostError, match="no encoder has been saved as 'nobody'"):
        server.queue(load_graph(encoder="newest of nobody"))


def test_the_newest_of_a_name_may_be_a_clip_g_alone(server: Server, base: pathlib.Path) -> None:
    """Of SDXL one encoder can be trained; the pair before it is older."""
    tables = {"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}
    names = [f"pair_{number:05}_{part}" for number, part in ((1, "clip_l"), (1, "clip_g"), (2, "clip_g"))]
    files = [base / "output" / "clip" / f"{name}.safetensors" for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"text_model.embeddings.token_embedding.weight": tables[file.stem[-6:]]}, file)
    try:
        for count, newest in ((3, names[2]), (2, names[0])):
            for file in files[count:]:
                file.unlink()
            with pytest.raises(HostError, match=newest):
                server.run(load_graph(encoder="newest of pair"))
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_the_report_has_the_recipe_and_the_base_of_a_trained_encoder(server: Server) -> None:
    name = server.run(train_graph("described"))["name"]["text"][0]
    graph = load_graph(encoder=name) | {"report": node("PreviewAny", source=("robust", 1))}
    report = server.run(graph)["report"]["text"][0]
    assert "recipe: preset custom, mode esd, 2 iterations" in report and "base model: host, SHA-256" in report
