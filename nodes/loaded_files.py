"""The files that a node's MODEL was loaded from, by the graph: the MODEL itself does not tell that it is distilled."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..advunlearn.formats.supported import require_many_steps, require_undistilled
from ..advunlearn.formats.weights import open_weights

FOLDERS = ("checkpoints", "diffusion_models", "loras")  # of the host, whose files a MODEL is made from
WITH_HEADER = (".safetensors", ".sft")  # whose names of tensors and title are read without the tensors
ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
Graph = Mapping[str, Mapping[str, Any]]  # in the API's format


def find_in_host(name: str) -> pathlib.Path | None:
    """Return the path of a model's file that the host lists under a name; None if there is none."""
    import folder_paths

    paths = (folder_paths.get_full_path(folder, name) for folder in FOLDERS)
    return next((pathlib.Path(path) for path in paths if path), None)


def check_loaded_files(hidden: Any, find_path: Callable[[str], pathlib.Path | None] = find_in_host) -> None:
    """Raise AdvUnlearnError if the MODEL of a node comes from a file distilled to a few steps: Turbo, Lightning, LCM.

    Most of them have the tensors of the model that they were made from, and their LoRAs are used like others: only the
    file's name or title tells. The UNet of an LCM has a guidance embedding, which the host ignores.

    Args:
        hidden: the node's hidden inputs, its id and the graph.
        find_path: returns the path of a file by the name under which the host lists it.
    """
    graph = hidden.prompt or {}
    for file in find_files(graph, graph.get(str(hidden.unique_id), {}).get("inputs", {}).get("model")):
        require_many_steps(file)
        path = find_path(file) if file.lower().endswith(WITH_HEADER) else None
        if path is not None:
            with open_weights(path) as weights:
                require_undistilled(weights)


def find_files(graph: Graph, link: object) -> Iterator[str]:
    """Yield the names of files of weights that the nodes before a link have as inputs, each node once.

    Where a node has a model among its inputs, only that is followed: its CLIP has no part in the MODEL.
    """
    waiting, seen = [link], set()
    while waiting:
        match waiting.pop():
            case [str() as node_id, int()] if node_id not in seen:
                seen.add(node_id)
                inputs = graph.get(node_id, {}).get("inputs", {})
                models = [value for name, value in inputs.items() if name.startswith("model") and is_link(value)]
                waiting += models or inputs.values()
                files = (value for value in inputs.values() if isinstance(value, str))
                yield from (file for file in files if file.lower().endswith(ENDINGS))


def is_link(value: object) -> bool:
    """Return whether the value of an input comes from another node's output."""
    return isinstance(value, list) and len(value) == 2
