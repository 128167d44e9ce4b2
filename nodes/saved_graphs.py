"""Graphs that were saved with earlier names of inputs and attacks.

The page restores the values of a graph by position, but the API's format names every input.
"""

from __future__ import annotations

from typing import Any

from ..advunlearn.config.renamed import RENAMED, current_attack
from .train import PREFIXES
from .widgets import prefixed

# Node -> sections of the settings that its inputs come from.
SECTIONS = {"AdvUnlearnTrain": ("train", "attack", "bank"), "AdvUnlearnEvaluate": ("evaluate",)}
# Inputs that are no settings of the library.
OTHER_INPUTS = {"AdvUnlearnEvaluate": {"routes": "synonyms"}}


def renamed_inputs(node_id: str) -> dict[str, str]:
    """Return the inputs of a node that have been renamed: old id -> current id."""
    settings = {
        prefixed(PREFIXES.get(section, ""), old): prefixed(PREFIXES.get(section, ""), new)
        for section in SECTIONS[node_id]
        for old, new in RENAMED.get(section, {}).items()
    }
    return settings | OTHER_INPUTS.get(node_id, {})


def with_current_names(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request for a prompt in which this pack's nodes have the current names of inputs and attacks."""
    for node in request.get("prompt", {}).values():
        node_id = node.get("class_type")
        if node_id in SECTIONS:
            new_names = renamed_inputs(node_id)
            node["inputs"] = {new_names.get(name, name): value for name, value in node["inputs"].items()}
        if node_id == "AdvUnlearnEvaluate" and isinstance(node["inputs"].get("attack"), str):
            node["inputs"]["attack"] = current_attack(node["inputs"]["attack"])
    return request


def accept_old_names() -> None:
    """Register the renaming with the host, which runs it on every submitted graph before the validation."""
    import server

    instance = getattr(server.PromptServer, "instance", None)  # there is none where the host runs without a server
    if instance is not None:
        instance.add_on_prompt_handler(with_current_names)
