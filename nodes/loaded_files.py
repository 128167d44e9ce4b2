"""The files that a node's MODEL was loaded from, by the graph: a distilled model is told by its name alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..advunlearn.formats.supported import require_many_steps

ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
Graph = Mapping[str, Mapping[str, Any]]  # in the API's format


def check_loaded_files(hidden: Any) -> None:
    """Raise AdvUnlearnError if the MODEL of a node comes from a file distilled to a few steps: Turbo, Lightning, LCM.

    Their tensors do not tell them from the model that they were made from, and their LoRAs are used in the same way.

    Args:
        hidden: the node's hidden inputs, its id and the graph.
    """
    graph = hidden.prompt or {}
    for file in find_files(graph, graph.get(str(hidden.unique_id), {}).get("inputs", {}).get("model")):
        require_many_steps(file)


def find_files(graph: Graph, link: object) -> Iterator[str]:
    """Yield the names of files of weights that the nodes before a link have as inputs, each node once."""
    waiting, seen = [link], set()
    while waiting:
        match waiting.pop():
            case [str() as node_id, int()] if node_id not in seen:
                seen.add(node_id)
                inputs = graph.get(node_id, {}).get("inputs", {}).values()
                waiting += inputs
                yield from (value for value in inputs if isinstance(value, str) and value.lower().endswith(ENDINGS))
