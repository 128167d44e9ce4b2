"""Every shipped workflow, run over HTTP as its graph is queued by the page, on the miniature."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType
from typing import Any

import pytest
import torch

from .server import PACK, HostError, Server
from .test_nodes import is_same_picture, objects, pictures

pytestmark = pytest.mark.host


def load_graphs() -> ModuleType:
    """Import the workflows' source by its path: `tools` is no package."""
    spec = importlib.util.spec_from_file_location("workflow_graphs", PACK / "tools" / "workflows" / "graphs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GRAPHS = load_graphs()
NAMES = sorted(GRAPHS.WORKFLOWS)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_holds_the_nodes_links_and_values_of_its_graph(server: Server, name: str) -> None:
    """The page made workflows/NAME.json of the graph: nothing was lost, and the host still knows every input."""
    graph, info = GRAPHS.WORKFLOWS[name](), server.get("object_info")
    page = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    shown = {str(node["id"]): node for node in page["nodes"]}
    assert {i: n["class_type"] for i, n in graph.items()} == {i: n["type"] for i, n in shown.items()}
    for i, made in graph.items():
        described = info[made["class_type"]]["input"]
        known = {**described.get("required", {}), **described.get("optional", {})}
        assert set(made["inputs"]) <= set(known), made["class_type"]
        links = {k for k, v in made["inputs"].items() if isinstance(v, list)}
        assert links == {entry["name"] for entry in shown[i].get("inputs", []) if entry.get("link") is not None}
        # In the order of the node's inputs; between them stand what the page adds, such as "control after generate".
        kept = iter(shown[i].get("widgets_values") or [])
        for key in (k for k in known if k in made["inputs"] and k not in links):
            assert made["inputs"][key] in kept, (made["class_type"], key)


WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_has_every_setting_of_the_packs_nodes_in_its_place(server: Server, name: str) -> None:
    """A page fills settings in by their place: one that the file lacks would shift all that come after it."""
    graph, info = GRAPHS.WORKFLOWS[name](), server.get("object_info")
    page = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    for shown in (n for n in page["nodes"] if n["type"].startswith("AdvUnlearn")):
        described = info[shown["type"]]["input"]
        known = {**described.get("required", {}), **described.get("optional", {})}
        names = [k for k, (kind, *_) in known.items() if isinstance(kind, list) or kind in WIDGETS]
        assert [entry["name"] for entry in shown["inputs"] if "widget" in entry] == names
        values = list(shown["widgets_values"])
        if "seed" in names:
            assert values.pop(names.index("seed") + 1) == "fixed"  # the page's "control after generate"
        made = graph[str(shown["id"])]["inputs"]
        placed = dict(zip(names, values, strict=True))
        assert {k: v for k, v in made.items() if k in names} == {k: v for k, v in placed.items() if k in made}


@pytest.fixture(scope="module")
def ran(server: Server) -> dict[str, dict[str, Any]]:
    """Run them all in an order in which each finds what it needs; `train` makes the encoder that the others load."""
    order = ["train", "before-and-after", "load-and-replace", "attack", "strength-sweep"]
    assert sorted([*order, "sdxl"]) == NAMES
    return {name: server.run(GRAPHS.WORKFLOWS[name](), timeout=1500) for name in order}


def saved(graph: dict[str, Any], title: str) -> str:
    """Return the id of the node with a title."""
    return next(i for i, n in graph.items() if n.get("_meta", {}).get("title") == title)


def drawn(server: Server, ran: dict[str, dict[str, Any]], name: str, title: str) -> torch.Tensor:
    return pictures(server, ran[name], saved(GRAPHS.WORKFLOWS[name](), title))


def test_train_erases_the_concept_and_keeps_its_neighbour(server: Server, ran: dict[str, dict[str, Any]]) -> None:
    assert objects(drawn(server, ran, "train", "erased")).count("church") <= 1
    assert objects(drawn(server, ran, "train", "kept")).count("castle") >= 3


def test_load_and_replace_draws_before_and_after(server: Server, ran: dict[str, dict[str, Any]]) -> None:
    before, after = (drawn(server, ran, "load-and-replace", when) for when in ("before", "after"))
    assert objects(before).count("church") >= 3 and objects(after).count("church") <= 1
    assert is_same_picture(after, drawn(server, ran, "train", "erased"))  # the file is what was trained


def test_strength_sweep_begins_at_the_base_and_ends_at_the_robust_encoder(
    server: Server, ran: dict[str, dict[str, Any]]
) -> None:
    zero, half, one = (drawn(server, ran, "strength-sweep", f"strength-{s}") for s in (0.0, 0.5, 1.0))
    assert is_same_picture(zero, drawn(server, ran, "load-and-replace", "before"))
    assert is_same_picture(one, drawn(server, ran, "load-and-replace", "after"))
    assert not torch.equal(half, zero) and not torch.equal(half, one)


def test_attack_finds_a_prompt_and_draws_it(server: Server, ran: dict[str, dict[str, Any]]) -> None:
    report = ran["attack"][saved(GRAPHS.WORKFLOWS["attack"](), "report")]["text"][0]
    assert "unlearndiffatk on 'a church'" in report and report.splitlines()[-1].endswith("a church")
    assert (drawn(server, ran, "attack", "attacked") - drawn(server, ran, "train", "erased")).abs().mean() > 0.02


def test_before_and_after_counts_fewer_churches_after(server: Server, ran: dict[str, dict[str, Any]]) -> None:
    graph = GRAPHS.WORKFLOWS["before-and-after"]()
    scores = json.loads(ran["before-and-after"][saved(graph, "scores")]["text"][0])["models"]
    before, after = (scores[when]["asr"] for when in ("before", "after"))
    assert before["clean"]["success"] >= 5 and after["clean"]["success"] <= 2
    assert after["unlearndiffatk"]["success"] < before["unlearndiffatk"]["success"]
    assert scores["after"]["utility"]["retained_accuracy"]["correct"] >= 50  # of 63


def test_sdxl_lacks_nothing_but_the_checkpoint_that_a_user_must_have(server: Server) -> None:
    with pytest.raises(HostError) as refused:
        server.queue(GRAPHS.WORKFLOWS["sdxl"]())
    errors = json.loads(str(refused.value))["node_errors"]
    assert [node["class_type"] for node in errors.values()] == ["CheckpointLoaderSimple"], errors
    (error,) = next(iter(errors.values()))["errors"]
    assert error["type"] == "value_not_in_list" and GRAPHS.SDXL in error["details"]
