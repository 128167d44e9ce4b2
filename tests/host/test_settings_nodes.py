"""The settings of a run in the real ComfyUI: what a dropped node has, presets, and settings nodes."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from .graphs import CHECKPOINT, SETTINGS_NODES, Graph, describe_inputs, is_widget, train_graph
from .server import PACK, HostError, Server, node

pytestmark = pytest.mark.host
MOST_WIDGETS = 12


def dropped_node(server: Server, name: str, **links: Any) -> dict[str, Any]:
    """Return a node with the values that its widgets have when it is put into a graph."""
    values = {}
    for key, (kind, options) in describe_inputs(server, name).items():
        if is_widget(kind):
            offered = options.get("options") or (kind if isinstance(kind, list) else [None])
            values[key] = options.get("default", offered[0])
    return node(f"AdvUnlearn{name}", **values | links)


def dropped_training(server: Server, **changes: Any) -> Graph:
    """Return a graph with a dropped training node on the miniature."""
    links = {"model": ("ckpt", 0), "clip": ("ckpt", 1)}
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "train": dropped_node(server, "Train", **links, **changes),
        "report": node("PreviewAny", source=("train", 3)),
    }


def read_settings(server: Server, graph: Graph) -> dict[str, str]:
    """Queue a graph that trains and cancel it at once; return what the log says about its settings, by section."""
    start, end = server.log.stat().st_size, time.time() + 300
    prompt_id = server.queue(graph)
    lines: list[str] = []
    while not any(line.startswith("bank: ") for line in lines) and time.time() < end:
        time.sleep(0.2)
        log = server.log.read_bytes()[start:].decode()
        complete = log.rpartition("\n")[0]
        lines = [line.partition("AdvUnlearn: ")[2] for line in complete.splitlines()]
    server.request("interrupt", {})
    with pytest.raises(HostError, match="execution_interrupted"):
        server.wait(prompt_id)
    return dict(line.split(": ", 1) for line in lines if ": " in line) | {"preset": find_line(lines, "preset ")}


def find_line(lines: list[str], start: str) -> str:
    """Return the first line that starts with a text."""
    return next(line for line in lines if line.startswith(start))


@pytest.mark.parametrize("name", ["Train", "Attack", "Evaluate"])
def test_a_node_has_few_widgets_and_a_seed_that_stays(server: Server, name: str) -> None:
    inputs = describe_inputs(server, name)
    widgets = [key for key, (kind, _) in inputs.items() if is_widget(kind)]
    assert len(widgets) <= MOST_WIDGETS, widgets
    assert inputs["seed"][1]["control_after_generate"] is False


def test_the_notes_have_the_widgets_of_each_node(server: Server) -> None:
    notes = (PACK / "docs" / "lab-notes" / "performance.md").read_text(encoding="utf-8")
    section = notes.split("## In ComfyUI: widgets and waiting")[1].split("\n## ")[0]
    written = {title: int(count) for title, count in re.findall(r"^\| ([^|]+) \| (\d+) \|", section, re.M)}
    nodes = {kind: info for kind, info in server.get("object_info").items() if kind.startswith("AdvUnlearn")}
    counted = {
        info["display_name"]: sum(
            is_widget(kind) for kind, _ in describe_inputs(server, name.removeprefix("AdvUnlearn")).values()
        )
        for name, info in nodes.items()
    }
    assert written == counted


@pytest.mark.parametrize(
    ("name", "key", "step"),
    [
        ("TrainingSettings", "lr", 1e-7),  # 1e-05 is usual
        ("TrainingSettings", "retain_weight", 0.01),
        ("AttackSettings", "step_size", 1e-5),  # 0.001 is published
        ("UnlearnDiffAtkSettings", "lr", 1e-3),  # 0.05 by default
        ("LoadNudityJudge", "threshold", 0.01),
    ],
)
def test_a_number_has_the_digits_that_its_usual_values_need(server: Server, name: str, key: str, step: float) -> None:
    options = describe_inputs(server, name)[key][1]
    assert options["step"] == options["round"] == pytest.approx(step)


def test_a_dropped_node_trains_the_miniature_with_its_own_settings(server: Server) -> None:
    settings = read_settings(server, dropped_training(server, save_name="dropped"))
    assert settings["preset"] == "preset miniature (auto), retain set miniature, resolution 64"
    assert "iterations 100, warmup 20" in settings["train"] and "lr 0.0002" in settings["train"]
    assert settings["attack"].startswith("steps 8, step_size 0.5, update sign")


def test_a_preset_that_is_chosen_by_name_has_the_published_settings(server: Server) -> None:
    settings = read_settings(server, dropped_training(server, save_name="published", preset="object"))
    assert settings["preset"].startswith("preset object, ")
    assert "iterations 1000, warmup 200" in settings["train"] and "lr 1e-05" in settings["train"]
    assert settings["attack"].startswith("steps 30, step_size 0.001, update adam")


def test_a_settings_node_changes_what_it_shows_and_leaves_the_rest_to_the_preset(server: Server) -> None:
    graph = dropped_training(server, save_name="settings", iterations=5)
    for socket in SETTINGS_NODES:
        graph[f"{socket}_settings"] = dropped_node(server, f"{socket.title()}Settings")
        graph["train"]["inputs"][socket] = [f"{socket}_settings", 0]
    graph["bank_settings"]["inputs"]["trajectories"] = 3
    settings = read_settings(server, graph)
    # The warm-up of a short run is a fifth of it.
    assert "iterations 5, warmup 1," in settings["train"] and "lr 0.0002" in settings["train"]
    assert settings["attack"].startswith("steps 8,")
    assert settings["bank"].startswith("trajectories 3, retain_trajectories 192, sampling_steps 20")
    graph["attack_settings"]["inputs"]["steps"] = 2
    graph["training_settings"]["inputs"] |= {"warmup": 0, "lr": 5e-6, "checkpointing": "on"}
    settings = read_settings(server, graph)
    assert all(text in settings["train"] for text in ("warmup 0,", "lr 5e-06", "batch 8,", "checkpointing true"))
    assert settings["attack"].startswith("steps 2, step_size 0.5")


def test_the_report_has_the_preset_all_settings_and_warnings(server: Server) -> None:
    graph = train_graph("told", resolution=128, training={"checkpointing": "on", "schedule": "joined"})
    report = server.run(graph)["report"]["text"][0]
    for text in (
        "preset custom, retain set none, resolution 128",
        "warning: resolution is 128, but the model was made for images of 64 pixels",
        "schedule joined",
        "lr 0.0003",
        "checkpointing true",
        "attack: steps 1, step_size 0.5",
        "bank: trajectories 2",
    ):
        assert text in report, report
    assert "resolution is 128" in server.log.read_text()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preset": "nudity", "concept": "van gogh"}, "preset nudity is for the concept nudity, but concept is 'van"),
        ({"preset": "style"}, "preset style is for the kind style, but kind is object"),
        ({"concept": " "}, "concept is empty"),
        ({"concept": "a cat and a dog"}, "may be one concept or several"),
    ],
)
def test_a_preset_for_another_concept_is_refused_before_the_graph_runs(
    server: Server, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(HostError, match=says):
        server.queue(dropped_training(server, **changes))


def test_running_again_with_nothing_changed_does_not_train_again(server: Server) -> None:
    graph = train_graph("twice")
    first = server.run(graph)
    prompt_id = server.queue(graph)
    messages = dict(server.wait(prompt_id)["status"]["messages"])
    assert "train" in messages["execution_cached"]["nodes"]
    assert not list((server.base / "output" / "clip").glob("twice_00002_*")), first


def test_an_attack_runs_with_its_settings_node_and_refuses_that_of_another(server: Server) -> None:
    graph = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "prefix": dropped_node(server, "SoftPrefixSettings"),
        "mma": dropped_node(server, "MMASettings", more=("prefix", 0)),
        "attack": dropped_node(
            server,
            "Attack",
            model=("ckpt", 0),
            clip=("ckpt", 1),
            attack="soft_prefix",
            steps=2,
            restarts=1,
            attack_settings=("mma", 0),
        ),
        "losses": node("PreviewAny", source=("attack", 3)),
    }

    def losses() -> list[float]:
        return json.loads(server.run(graph)["losses"]["text"][0])["loss"]

    connected = losses()
    graph["prefix"]["inputs"]["lr"] = 0.05
    slow = losses()
    assert connected[0] == slow[0] and connected[1] != slow[1]
    del graph["attack"]["inputs"]["attack_settings"]
    assert losses() == connected  # the settings node shows what is used without it
    graph["attack"]["inputs"] |= {"attack": "unlearndiffatk", "attack_settings": ["mma", 0]}
    with pytest.raises(HostError, match="has the settings of soft_prefix, mma, but the attack is unlearndiffatk"):
        server.run(graph)
