"""Graphs in the API's format that were saved with earlier inputs of the nodes.

Inputs that have been renamed get their current names; those that settings nodes have now are moved into such nodes,
which are added to the graph. The page's own format restores values by position: see docs/guide/comfyui.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ..advunlearn.config.presets import CUSTOM, PRESETS
from ..advunlearn.config.renamed import RENAMED, current_attack
from ..advunlearn.config.training import SECTIONS
from .evaluation_settings import BUDGET
from .training_settings import SHOWN_ELSEWHERE
from .widgets import SWITCH

Inputs = dict[str, Any]
PREFIXES = {"attack": "attack_", "bank": "bank_"}  # section -> start of the ids that its inputs had
# Node -> sections of the settings that its inputs came from.
SETTINGS_OF = {"AdvUnlearnTrain": ("concept", "train", "attack", "bank"), "AdvUnlearnEvaluate": ("evaluate",)}
# Inputs that are no settings of the library.
OTHER_RENAMED = {"AdvUnlearnEvaluate": {"routes": "synonyms"}}
# Section, or input without one -> the node that has it now, and the socket that takes its output.
TRAINING = ("AdvUnlearnTrainingSettings", "training")
SETTINGS_NODES = {
    "concept": TRAINING,
    "train": TRAINING,
    "attack": ("AdvUnlearnAttackSettings", "attack"),
    "bank": ("AdvUnlearnBankSettings", "bank"),
}
EVALUATION = ("AdvUnlearnEvaluationSettings", "evaluation")
# Settings of test attacks that Adversarial Prompt Attack had; only those of the chosen attack had an effect.
TEST_ATTACKS = {
    "unlearndiffatk": ("AdvUnlearnUnlearnDiffAtkSettings", {"attack_lr": "lr"}),
    "soft_prefix": ("AdvUnlearnSoftPrefixSettings", {"prefix_lr": "lr", "prefix_radius": "radius"}),
}
# Required inputs that the nodes did not have, with values that mean the same as before.
NEW_INPUTS: dict[str, Inputs] = {
    "AdvUnlearnTrain": {"memory": "auto"},
    "AdvUnlearnAttack": {"concept": ""},
    "AdvUnlearnEvaluate": {"prompts": "", "retained_prompts": ""},
}


@dataclasses.dataclass(frozen=True)
class Move:
    """An input that another node has now."""

    old: str  # the id that it had
    node_id: str  # the settings node
    socket: str  # the input that takes the settings node's output
    new: str  # the id that it has there


def prefixed(prefix: str, name: str) -> str:
    """Return the id that a setting's input had; a name that begins with the prefix was not prefixed again."""
    return name if name.startswith(prefix) else prefix + name


def renamed_inputs(node_id: str) -> dict[str, str]:
    """Return the inputs of a node that were renamed: old id -> later id."""
    settings = {
        prefixed(PREFIXES.get(section, ""), old): prefixed(PREFIXES.get(section, ""), new)
        for section in SETTINGS_OF.get(node_id, ())
        for old, new in RENAMED.get(section, {}).items()
    }
    return settings | OTHER_RENAMED.get(node_id, {})


def list_moves(node_id: str, inputs: Mapping[str, Any]) -> Iterator[Move]:
    """Yield the inputs of a node that settings nodes have now."""
    if node_id == "AdvUnlearnTrain":
        for section, (settings_node, socket) in SETTINGS_NODES.items():
            for field in dataclasses.fields(SECTIONS[section]):  # type: ignore[arg-type]
                if field.name not in SHOWN_ELSEWHERE.get(section, ()):
                    yield Move(prefixed(PREFIXES.get(section, ""), field.name), settings_node, socket, field.name)
        for name in ("dtype", "sample_every"):
            yield Move(name, *TRAINING, name)
    if node_id == "AdvUnlearnEvaluate":
        for name in (*BUDGET, "synonyms"):
            yield Move(name, *EVALUATION, name)
    if node_id == "AdvUnlearnAttack" and inputs.get("attack") in TEST_ATTACKS:
        settings_node, names = TEST_ATTACKS[inputs["attack"]]
        for old, new in names.items():
            yield Move(old, settings_node, "attack_settings", new)


def leave_to_preset(inputs: Inputs) -> Inputs:
    """Return a training node's inputs without the settings that its preset overrode."""
    preset = PRESETS.get(inputs.get("preset", CUSTOM), {})
    overridden = {
        prefixed(PREFIXES.get(section, ""), name)
        for section, values in preset.items()
        for name in values
        if name not in ("concept", "kind")
    }
    kept = {name: value for name, value in inputs.items() if name not in overridden}
    return kept | ({"iterations": 0} if "iterations" in overridden else {})


def with_current_inputs(id: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node with its current inputs, by its id, and the settings nodes that take the other ones."""
    node_id = node["class_type"]
    names = renamed_inputs(node_id)
    inputs = {names.get(name, name): value for name, value in node["inputs"].items()}
    if isinstance(inputs.get("attack"), str):
        inputs["attack"] = current_attack(inputs["attack"])
    moves = [move for move in list_moves(node_id, inputs) if move.old in inputs]
    if moves and node_id == "AdvUnlearnTrain" and "memory" not in inputs:
        inputs = leave_to_preset(inputs)
    graph: dict[str, Any] = {}
    for move in moves:
        if move.old not in inputs:
            continue
        value = inputs.pop(move.old)
        if isinstance(value, bool):
            value = next(choice for choice, meaning in SWITCH.items() if meaning == value)
        settings_id = f"{id}_{move.socket}"
        graph.setdefault(settings_id, {"class_type": move.node_id, "inputs": {}})["inputs"][move.new] = value
        inputs[move.socket] = [settings_id, 0]
    return {id: {**node, "inputs": NEW_INPUTS.get(node_id, {}) | inputs}, **graph}


def with_current_graph(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request for a prompt in which this pack's nodes have their current inputs."""
    prompt: dict[str, Any] = {}
    for id, node in request.get("prompt", {}).items():
        known = isinstance(node, dict) and node.get("class_type") in NEW_INPUTS and isinstance(node.get("inputs"), dict)
        prompt |= with_current_inputs(id, node) if known else {id: node}
    return {**request, "prompt": prompt} if "prompt" in request else request


def accept_old_graphs() -> None:
    """Register the conversion with the host, which runs it on every submitted graph before the validation."""
    import server

    instance = getattr(server.PromptServer, "instance", None)  # there is none where the host runs without a server
    if instance is not None:
        instance.add_on_prompt_handler(with_current_graph)
