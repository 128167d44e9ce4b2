"""Graphs in the API's format that were saved with earlier inputs of the nodes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .graphs import CHECKPOINT, Graph, attack_node, describe_inputs, is_widget
from .server import HostError, Server, node
from .test_settings_nodes import read_settings

pytestmark = pytest.mark.host
# Every input that the training node had before its settings nodes, some by still earlier names.
OLD_TRAINING: dict[str, Any] = {
    "concept": "church",
    "preset": "custom",
    "kind": "object",
    "mode": "advunlearn",
    "iterations": 4,
    "attack_steps": 7,
    "lr": 3e-4,
    "retain_set": "none",
    "retain_weight": 1.5,
    "seed": 3,
    "resolution": 64,
    "save_name": "old",
    "resume": False,
    "sample_every": 0,
    "retain_prompts": "a dog",
    "negative_guidance": 2.0,
    "schedule": "joined",
    "warmup": 1,
    "batch": 2,
    "clean_share": 0.5,
    "retain_batch": 1,
    "retain_by": "step",
    "trainable": "attention",
    "layers": 2,
    "final_norm": "freeze",
    "checkpointing": True,
    "dtype": "default",
    "attack_step_size": 0.4,
    "attack_update": "sign",
    "attack_tokens": 2,
    "attack_position": "suffix",
    "attack_per_k": 3,
    "attack_start": "random",
    "attack_start_text": "",
    "attack_restarts": 1,
    "attack_every": 2,
    "attack_redraw": "iteration",
    "attack_radius": 0.5,
    "attack_norm": "l2",
    "attack_unit": "sigma",
    "bank_trajectories": 2,
    "bank_retain_trajectories": 2,
    "bank_sampling_steps": 2,
    "bank_guidance_scale": 2.0,
    "attack_inversion_tokens": 0,
}


def old_graph(**changes: Any) -> Graph:
    """Return a graph that trains with the earlier inputs."""
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "train": node("AdvUnlearnTrain", model=("ckpt", 0), clip=("ckpt", 1), **OLD_TRAINING | changes),
        "report": node("PreviewAny", source=("train", 3)),
    }


def test_an_earlier_training_graph_trains_with_all_its_settings(server: Server) -> None:
    report = server.run(old_graph())["report"]["text"][0].splitlines()
    settings = dict(
        line.split(": ", 1) for line in report if line.startswith(("concept:", "train:", "attack:", "bank:"))
    )
    assert report[0] == "advunlearn on 'church' (object): 4 iterations, seed 3"
    assert settings["concept"] == "concept church, kind object, negative_guidance 2, schedule joined"
    for section, expected in {
        "train": (
            "mode advunlearn, iterations 4, warmup 1",
            "trainable attention, final_norm freeze, encoders both, num_layers 2, lr 0.0003, batch 2, clean_share 0.5",
            "retain_weight 1.5, retain_batch 1, retain_mode step",
            "checkpointing true",
        ),
        "attack": (
            "steps 7, step_size 0.4, update sign, tokens 2, position suffix",
            "start random, restarts 1, attack_interval 2, resample iteration, radius 0.5, norm l2",
        ),
        "bank": ("trajectories 2, retain_trajectories 2, sampling_steps 2, guidance_scale 2",),
    }.items():
        assert all(text in settings[section] for text in expected), settings[section]


def test_an_earlier_preset_still_overrides_the_settings_but_not_the_concept(server: Server) -> None:
    settings = read_settings(server, old_graph(preset="nudity", concept="nudity"))
    assert "iterations 1000, warmup 200" in settings["train"] and "retain_weight 0.3" in settings["train"]
    assert settings["attack"].startswith("steps 30, step_size 0.001") and "attack_interval 1," in settings["attack"]
    assert settings["bank"].startswith("trajectories 2, retain_trajectories 2, sampling_steps 50")
    with pytest.raises(HostError, match="preset nudity is for the concept nudity, but concept is 'van gogh'"):
        server.queue(old_graph(preset="nudity", concept="van gogh"))


@pytest.mark.parametrize(
    ("attack", "setting", "value"), [("unlearndiffatk", "attack_lr", 0.0), ("soft_prefix", "prefix_radius", 0.01)]
)
def test_an_earlier_attack_graph_attacks_with_its_learning_rate_and_radius(
    server: Server, attack: str, setting: str, value: float
) -> None:
    def losses(**changes: float) -> list[float]:
        inputs: dict[str, Any] = {"attack_lr": 0.05, "prefix_lr": 0.3, "prefix_radius": 1.0} | changes
        graph = {
            "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
            "attack": attack_node("a church", attack, steps=2, tokens=2, **inputs),
            "losses": node("PreviewAny", source=("attack", 3)),
        }
        return json.loads(server.run(graph)["losses"]["text"][0])["loss"]

    usual, changed = losses(), losses(**{setting: value})
    assert usual != changed


def test_an_earlier_evaluation_graph_has_its_budget_and_its_synonyms(server: Server) -> None:
    graph = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "judge": node("AdvUnlearnLoadJudge", judge="miniature"),
        "evaluate": node(
            "AdvUnlearnEvaluate",
            model=("ckpt", 0),
            clip_before=("ckpt", 1),
            clip_after=("ckpt", 1),
            vae=("ckpt", 2),
            judge=("judge", 0),
            concept="church",
            kind="object",
            attack="routes",
            cases=1,
            attack_steps=0,
            seed=1000,
            resolution=64,
            attack_every=1,
            attack_tokens=2,
            sampling_steps=5,
            guidance_scale=3.0,
            repeats=0,
            routes="a dog\nchapel\nKirche",
        ),
        "scores": node("PreviewAny", source=("evaluate", 2)),
    }
    report = json.loads(server.run(graph)["scores"]["text"][0])
    attacks = [row["attacks"] for row in report["models"].values()]
    assert all(row["synonym_search"]["steps"] == 3 for row in attacks) and report["own_synonyms"][0] == "a dog"
    assert all("retained_accuracy" not in row["utility"] for row in report["models"].values())  # repeats is 0


def restore_by_position(server: Server, name: str, values: list[Any]) -> dict[str, Any]:
    """Return the widgets of a node with the values of a workflow file, as the page restores them."""
    widgets = [key for key, (kind, _) in describe_inputs(server, name).items() if is_widget(kind)]
    return dict(zip(widgets, values, strict=False))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Train", ["church", "custom", "object", "advunlearn", 30, 3, 0.0003, "miniature", 2, 0, "fixed", 64]),
        ("Attack", ["a church", "unlearndiffatk", 30, 5, 4, 1000, "fixed", 64, "adversarial", 0.05, 0.3, 1, ""]),
        ("Evaluate", ["church", "object", "both", 6, 10, 1000, "fixed", 64, 5, 5, 8, 3, 1, "", "", ""]),
    ],
)
def test_values_of_an_earlier_workflow_file_are_refused_not_mixed_up(
    server: Server, name: str, values: list[Any]
) -> None:
    """They are the beginning of the earlier nodes' values; the seed was followed by "control after generate"."""
    links = {
        "Train": {"model": ("ckpt", 0), "clip": ("ckpt", 1)},
        "Attack": {"model": ("ckpt", 0), "clip": ("ckpt", 1)},
        "Evaluate": {
            "model": ("ckpt", 0),
            "clip_before": ("ckpt", 1),
            "clip_after": ("ckpt", 1),
            "vae": ("ckpt", 2),
            "judge": ("judge", 0),
        },
    }[name]
    graph = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "judge": node("AdvUnlearnLoadJudge", judge="miniature"),
        "restored": node(f"AdvUnlearn{name}", **links, **restore_by_position(server, name, values)),
    }
    with pytest.raises(HostError) as refused:
        server.queue(graph)
    kinds = {error["type"] for error in json.loads(str(refused.value))["node_errors"]["restored"]["errors"]}
    assert kinds & {"value_not_in_list", "invalid_input_type"}, kinds
