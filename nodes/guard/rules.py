"""The guard's rules: a graph in, a graph out in which all text goes through the robust encoder. Imports no host.

Three rules, which need no list of attacks:

1. Every CLIP in the graph is replaced by the operator's. What loaders, LoRAs, merges, hooks, another last layer or
   another strength do to a CLIP is then not used.
2. Conditionings and models come from known nodes only.
3. All other nodes must be the host's own and handle plain data, such as images and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...advunlearn.errors import AdvUnlearnError
from .settings import ENCODER_ID, LOADER_ID, GuardConfig

Graph = dict[str, dict[str, Any]]
CLIP = "CLIP"
# What a node of the host may take and return without being listed below. None of it reaches the denoiser as text.
PLAIN_TYPES = frozenset(
    (
        "AUDIO",
        "BOOLEAN",
        "COLOR",
        "COMBO",
        "FLOAT",
        "IMAGE",
        "INT",
        "LATENT",
        "MASK",
        "NOISE",
        "SAMPLER",
        "SIGMAS",
        "STRING",
        "UPSCALE_MODEL",
        "VAE",
        "VIDEO",
    )
)
TEXT_NODES = (
    "CLIPTextEncode",
    "CLIPTextEncodeFlux",
    "CLIPTextEncodeSD3",
    "CLIPTextEncodeSDXL",
    "CLIPTextEncodeSDXLRefiner",
)
CONDITIONING_NODES = (
    "ConditioningAverage",
    "ConditioningCombine",
    "ConditioningConcat",
    "ConditioningSetArea",
    "ConditioningSetAreaPercentage",
    "ConditioningSetAreaStrength",
    "ConditioningSetMask",
    "ConditioningSetTimestepRange",
    "ConditioningZeroOut",
    "ControlNetApply",
    "ControlNetApplyAdvanced",
    "ControlNetLoader",
    "FluxGuidance",
    "InpaintModelConditioning",
)
# Where they return a CLIP as well, it is not used.
MODEL_NODES = (
    "CheckpointLoader",
    "CheckpointLoaderSimple",
    "DifferentialDiffusion",
    "EasyCache",
    "FreeU",
    "FreeU_V2",
    "HyperTile",
    "LazyCache",
    "LoraLoader",
    "LoraLoaderModelOnly",
    "ModelSamplingDiscrete",
    "ModelSamplingFlux",
    "ModelSamplingSD3",
    "PatchModelAddDownscale",
    "PerturbedAttentionGuidance",
    "RescaleCFG",
    "SelfAttentionGuidance",
    "TomePatchModel",
    "UNETLoader",
)
SAMPLING_NODES = (
    "AddNoise",
    "BasicGuider",
    "BasicScheduler",
    "BetaSamplingScheduler",
    "CFGGuider",
    "DualCFGGuider",
    "KSampler",
    "KSamplerAdvanced",
    "PerpNegGuider",
    "SDTurboScheduler",
    "SamplerCustom",
    "SamplerCustomAdvanced",
)
# They pass on what they are given; a CLIP among it has been replaced.
PASSING_NODES = (
    "BatchImagesNode",
    "BatchLatentsNode",
    "BatchMasksNode",
    "ComfyMathExpression",
    "ComfySwitchNode",
    "PreviewAny",
    "ResizeImageMaskNode",
    "SaveImageAdvanced",
    "SaveVideo",
    "StringFormat",
)
KNOWN_NODES = frozenset((*TEXT_NODES, *CONDITIONING_NODES, *MODEL_NODES, *SAMPLING_NODES, *PASSING_NODES))


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """What the host says about a node class."""

    inputs: Mapping[str, str]  # name -> type
    outputs: tuple[str, ...]  # types
    builtin: bool  # part of the host, neither of a pack nor calling a service elsewhere
    is_output: bool = False


FindKind = Callable[[str], NodeKind | None]


class GraphRefused(AdvUnlearnError):
    """A graph that the guard does not let through; `node_id` is the node that is to blame, "" for none."""

    def __init__(self, reason: str, node_id: str = "") -> None:
        super().__init__(reason)
        self.node_id = node_id


def guard_graph(graph: object, find_kind: FindKind, config: GuardConfig) -> tuple[Graph, list[str]]:
    """Return a graph in which all text goes through the robust encoder, and what was changed.

    Args:
        graph: a submitted graph in the API's form; it is not changed.
        find_kind: returns the kind of a node class, None for a class that the host does not have.
        config: the operator's settings.

    Raises GraphRefused for a graph that is malformed or has a node that might go around the encoder.
    """
    nodes = copy_nodes(graph)
    kinds = {node_id: find_required(node_id, node, find_kind) for node_id, node in nodes.items()}
    for node_id, node in nodes.items():
        check_links(node_id, node, kinds)
    replaced = replace_clips(nodes, kinds)
    changes = replaced + drop_clip_nodes(nodes, kinds)
    for node_id, node in nodes.items():
        check_class(node_id, node["class_type"], kinds[node_id], config)
        check_numbers(node_id, node, kinds[node_id])
    if config.embeddings == "refuse":
        changes += note_embeddings(nodes)
    return nodes | (config.encoder_nodes() if replaced else {}), changes


def copy_nodes(graph: object) -> Graph:
    """Return a copy of a graph that has only what the host needs. Raises GraphRefused if it is malformed."""
    if not isinstance(graph, dict):
        raise GraphRefused(f"the graph is a {type(graph).__name__}, not an object of nodes")
    nodes: Graph = {}
    for node_id, node in graph.items():
        if not isinstance(node_id, str) or node_id in (ENCODER_ID, LOADER_ID):
            raise GraphRefused(f"the node id {node_id!r} cannot be used; give the node another one")
        is_node = isinstance(node, dict) and isinstance(node.get("class_type"), str)
        if not is_node or not isinstance(node.get("inputs"), dict):
            raise GraphRefused(f"node {node_id} has no class_type or no inputs", node_id)
        # Other entries, such as is_changed, would reach into the host's cache.
        nodes[node_id] = {key: node[key] for key in ("class_type", "_meta") if key in node}
        nodes[node_id]["inputs"] = dict(node["inputs"])
    return nodes


def find_required(node_id: str, node: Mapping[str, Any], find_kind: FindKind) -> NodeKind:
    """Return a node's kind. Raises GraphRefused for a class that the host does not have."""
    kind = find_kind(node["class_type"])
    if kind is None:
        raise GraphRefused(f"node {node_id}: there is no node class {node['class_type']!r}", node_id)
    return kind


def check_links(node_id: str, node: Mapping[str, Any], kinds: Mapping[str, NodeKind]) -> None:
    """Raise GraphRefused for a link that the rules could read otherwise than the host does."""
    for name, value in node["inputs"].items():
        is_wrapped = isinstance(value, dict) and "__value__" in value
        if is_wrapped and is_like_link(unwrap(value)):
            # The host validates it as a value, and follows it as a link when it runs.
            raise GraphRefused(f"node {node_id}: the link of {name} is wrapped as a value", node_id)
        if isinstance(value, list) and not is_link(value, kinds):
            raise GraphRefused(f"node {node_id}: {name} is {value!r}, which is no link to an output of a node", node_id)


def unwrap(value: object) -> object:
    """Return the value inside the host's wrapper of list values, however often it is wrapped."""
    while isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    return value


def is_like_link(value: object) -> bool:
    """Return whether the host would take a value for a link."""
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and isinstance(value[0], str) and isinstance(value[1], int | float)


def is_link(value: list[Any], kinds: Mapping[str, NodeKind]) -> bool:
    """Return whether a list is a link to an existing output. The host accepts -1, 1.0 and True as well."""
    if len(value) != 2 or not isinstance(value[0], str) or value[0] not in kinds:
        return False
    return type(value[1]) is int and 0 <= value[1] < len(kinds[value[0]].outputs)


def replace_clips(nodes: Graph, kinds: Mapping[str, NodeKind]) -> list[str]:
    """Replace every CLIP by the robust encoder's, in place; return what was changed."""
    changes = []
    for node_id, node in nodes.items():
        for name, value in node["inputs"].items():
            takes_clip = CLIP in kinds[node_id].inputs.get(name, "").split(",")
            if takes_clip or (isinstance(value, list) and kinds[value[0]].outputs[value[1]] == CLIP):
                source = f"output {value[1]} of node {value[0]}" if isinstance(value, list) else repr(value)
                changes.append(f"node {node_id}: {name} is the robust encoder instead of {source}")
                node["inputs"][name] = [ENCODER_ID, 0]
    return changes


def drop_clip_nodes(nodes: Graph, kinds: Mapping[str, NodeKind]) -> list[str]:
    """Drop the nodes that make a CLIP, and a text about it, of which nothing is taken; return what was changed."""
    taken = {value[0] for node in nodes.values() for value in node["inputs"].values() if isinstance(value, list)}
    dropped = [
        node_id
        for node_id in nodes
        if {CLIP} <= set(kinds[node_id].outputs) <= {CLIP, "STRING"}
        and not kinds[node_id].is_output
        and node_id not in taken
    ]
    return [f"node {node_id}: {nodes.pop(node_id)['class_type']} is left out" for node_id in dropped]


def check_class(node_id: str, class_type: str, kind: NodeKind, config: GuardConfig) -> None:
    """Raise GraphRefused for a node class that is not allowed."""
    if class_type in config.refuse:
        raise GraphRefused(f"node {node_id}: this server does not accept {class_type}", node_id)
    if class_type in config.allow:
        return
    if not kind.builtin:
        raise GraphRefused(
            f"node {node_id}: this server accepts no nodes of other packs, such as {class_type}", node_id
        )
    types = {one for each in (*kind.inputs.values(), *kind.outputs) for one in each.split(",")}
    if class_type not in KNOWN_NODES and not types <= PLAIN_TYPES:
        raise GraphRefused(
            f"node {node_id}: {class_type} handles {', '.join(sorted(types - PLAIN_TYPES))} and is not known to keep "
            "all text in the robust encoder; this server does not accept it",
            node_id,
        )


def check_numbers(node_id: str, node: Mapping[str, Any], kind: NodeKind) -> None:
    """Raise GraphRefused for a linked number of a node that changes conditionings.

    The host checks the range of a value and not of a linked one; an average with a weight of 50 is no average.
    """
    for name, value in node["inputs"].items():
        is_number = kind.inputs.get(name) in ("FLOAT", "INT")
        if is_number and isinstance(value, list) and node["class_type"] in CONDITIONING_NODES:
            raise GraphRefused(f"node {node_id}: {name} is linked; give {node['class_type']} a number", node_id)


def note_embeddings(nodes: Graph) -> list[str]:
    """Return a note for every text that refers to an embedding, which is read as plain text."""
    return [
        f"node {node_id}: embedding: in {name} is read as text"
        for node_id, node in nodes.items()
        for name, value in node["inputs"].items()
        if isinstance(value, str) and "embedding:" in value
    ]
