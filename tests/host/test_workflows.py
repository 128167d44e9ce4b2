"""Every shipped workflow, run over HTTP as its graph is queued by the page, on the miniature at a small budget."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from .conftest import WORKFLOWS
from .graphs import IMAGES, RETAINED, SHIPPED, get_images, is_same_image, recognise_objects
from .server import PACK, HostError, Server

pytestmark = pytest.mark.host
NAMES = sorted(SHIPPED.WORKFLOWS)
FOR_STABLE_DIFFUSION = {"sdxl": SHIPPED.SDXL, "train-sdxl": SHIPPED.SDXL, "train-sd15": SHIPPED.SD15}
Outputs = dict[str, dict[str, Any]]


def read_page(name: str) -> dict[str, Any]:
    return json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_has_the_nodes_links_and_values_of_its_graph(server: Server, name: str) -> None:
    """The page made workflows/NAME.json from the graph: nothing was lost, and the host still knows every input."""
    graph, info = SHIPPED.WORKFLOWS[name](), server.get("object_info")
    shown = {str(node["id"]): node for node in read_page(name)["nodes"] if node["type"] != "MarkdownNote"}
    assert {i: node["class_type"] for i, node in graph.items()} == {i: node["type"] for i, node in shown.items()}
    for i, node in graph.items():
        described = info[node["class_type"]]["input"]
        known = {**described.get("required", {}), **described.get("optional", {})}
        assert set(node["inputs"]) <= set(known), node["class_type"]
        links = {name for name, value in node["inputs"].items() if isinstance(value, list)}
        assert links == {entry["name"] for entry in shown[i].get("inputs", []) if entry.get("link") is not None}
        # In the order of the node's inputs; the page adds values in between, such as "control after generate".
        values = iter(shown[i].get("widgets_values") or [])
        for key in (key for key in known if key in node["inputs"] and key not in links):
            assert node["inputs"][key] in values, (node["class_type"], key)


WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_has_every_setting_of_the_packs_nodes_in_its_position(server: Server, name: str) -> None:
    """The page restores values by position: a missing one would shift all values after it."""
    graph, info = SHIPPED.WORKFLOWS[name](), server.get("object_info")
    for shown in (node for node in read_page(name)["nodes"] if node["type"].startswith("AdvUnlearn")):
        described = info[shown["type"]]["input"]
        known = {**described.get("required", {}), **described.get("optional", {})}
        names = [key for key, (kind, *_) in known.items() if isinstance(kind, list) or kind in WIDGETS]
        assert [entry["name"] for entry in shown["inputs"] if "widget" in entry] == names
        inputs = graph[str(shown["id"])]["inputs"]
        stored = dict(zip(names, shown["widgets_values"], strict=True))  # no seed has a "control after generate"
        assert {k: v for k, v in inputs.items() if k in names} == {k: v for k, v in stored.items() if k in inputs}


def test_every_workflow_but_those_for_stable_diffusion_is_run() -> None:
    """`test_sdxl_runs.py` runs those for SDXL."""
    assert sorted([*WORKFLOWS, *FOR_STABLE_DIFFUSION]) == NAMES


@pytest.mark.parametrize(("name", "file"), FOR_STABLE_DIFFUSION.items())
def test_a_workflow_for_stable_diffusion_has_the_link_of_its_checkpoint(name: str, file: str) -> None:
    (loader,) = (node for node in read_page(name)["nodes"] if node["type"] == "CheckpointLoaderSimple")
    (model,) = loader["properties"]["models"]
    assert model["name"] == file and model["directory"] == "checkpoints"
    assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(f"/{file}")


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_says_what_to_do_first_and_has_numbered_steps(name: str) -> None:
    page = read_page(name)
    (note,) = (node for node in page["nodes"] if node["type"] == "MarkdownNote")
    assert "**First**" in note["widgets_values"][0] or "Press **Run**" in note["widgets_values"][0]
    assert sorted({group["title"][:2] for group in page["groups"]})[:3] == ["1.", "2.", "3."]
    assert page["extra"]["info"]["description"]


def find_node(name: str, title: str) -> str:
    """Return the id of the node with a title in a workflow."""
    return next(i for i, node in SHIPPED.WORKFLOWS[name]().items() if node.get("_meta", {}).get("title") == title)


def saved_images(server: Server, workflows: Outputs, name: str, title: str) -> torch.Tensor:
    return get_images(server, workflows[name], find_node(name, title))


def test_train_erases_the_concept_and_keeps_its_neighbour(server: Server, workflows: Outputs) -> None:
    assert "church" not in recognise_objects(saved_images(server, workflows, "train", "erased"))
    assert recognise_objects(saved_images(server, workflows, "train", "kept")) == ["castle"] * IMAGES


def test_load_and_replace_shows_before_and_after(server: Server, workflows: Outputs) -> None:
    before, after = (saved_images(server, workflows, "load-and-replace", when) for when in ("before", "after"))
    assert recognise_objects(before) == ["church"] * IMAGES
    assert is_same_image(after, saved_images(server, workflows, "train", "erased"))  # the file is what was trained


def test_strength_sweep_starts_at_the_base_and_ends_at_the_robust_encoder(server: Server, workflows: Outputs) -> None:
    zero, half, one = (saved_images(server, workflows, "strength-sweep", f"strength-{s}") for s in (0.0, 0.5, 1.0))
    assert is_same_image(zero, saved_images(server, workflows, "load-and-replace", "before"))
    assert is_same_image(one, saved_images(server, workflows, "load-and-replace", "after"))
    assert not torch.equal(half, zero) and not torch.equal(half, one)


def test_attack_returns_a_prompt_and_samples_it(server: Server, workflows: Outputs) -> None:
    report = workflows["attack"][find_node("attack", "report")]["text"][0]
    assert "unlearndiffatk on 'a church'" in report and report.splitlines()[-1].endswith("a church")
    attacked, erased = (
        saved_images(server, workflows, name, title) for name, title in (("attack", "attacked"), ("train", "erased"))
    )
    assert (attacked - erased).abs().mean() > 0.02


def test_before_and_after_counts_fewer_churches_after(workflows: Outputs) -> None:
    scores = json.loads(workflows["before-and-after"]["scores"]["text"][0])["models"]
    before, after = (scores[when]["asr"] for when in ("before", "after"))
    assert before["clean"]["success"] == 2 and after["clean"]["success"] <= 1
    assert {"unlearndiffatk", "soft_prefix"} < after.keys()
    retained = scores["after"]["utility"]["retained_accuracy"]
    assert retained["total"] == len(RETAINED) and retained["correct"] >= len(RETAINED) - 1


@pytest.mark.parametrize("name", ["train-sd15", "train-sdxl"])
def test_what_is_not_run_lacks_only_the_checkpoint_that_a_user_must_have(server: Server, name: str) -> None:
    file = FOR_STABLE_DIFFUSION[name]
    with pytest.raises(HostError) as refused:
        server.queue(SHIPPED.WORKFLOWS[name]())
    errors = json.loads(str(refused.value))["node_errors"]
    assert [node["class_type"] for node in errors.values()] == ["CheckpointLoaderSimple"], errors
    (error,) = next(iter(errors.values()))["errors"]
    assert error["type"] == "value_not_in_list" and file in error["details"]
