"""Graphs for the host tests, at the smallest budgets that can still fail."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
import torch

from advunlearn import miniature
from advunlearn.judges.convnet import ConvJudge

from .server import PACK, Server, node

Graph = dict[str, dict[str, Any]]


def load_shipped() -> ModuleType:
    """Import the workflows' source by its path: `tools` is no package."""
    spec = importlib.util.spec_from_file_location("workflow_graphs", PACK / "tools" / "workflows" / "graphs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHIPPED = load_shipped()
CHECKPOINT: str = SHIPPED.CHECKPOINT
ENCODER = f"{SHIPPED.NAME}_00001_.safetensors"  # what the workflow `train` makes
IMAGES = 2  # per prompt: each takes 1.5 seconds of one core
RETAINED = ("dog", "castle", "house", "car")
SMALL: dict[str, dict[str, Any]] = {
    "EmptyLatentImage": {"batch_size": IMAGES},
    "KSampler": {"steps": 10},
    "ImageScaleBy": {"scale_by": 1.0},  # the judge sees the images as they were sampled
    "AdvUnlearnTrain": {
        "iterations": 12,
        "retain_set": "none",
        "retain_prompts": "\n".join(f"a {name}" for name in RETAINED),
    },
    "AdvUnlearnTrainingSettings": {"warmup": 4, "lr": 2e-4, "batch": 2, "retain_batch": 3, "sample_every": 0},
    "AdvUnlearnAttackSettings": {"steps": 1, "restarts": 1},
    "AdvUnlearnBankSettings": {"trajectories": 6, "retain_trajectories": 8, "sampling_steps": 6},
    "AdvUnlearnAttack": {"steps": 4, "restarts": 1, "pictures": 2},
    "AdvUnlearnEvaluate": {
        "cases": 2,
        "attack_steps": 1,
        "retained_prompts": "\n".join(f"a {name} | {name}" for name in RETAINED),
    },
    "AdvUnlearnEvaluationSettings": {"judge_interval": 1, "sampling_steps": 8},
}


def small_workflow(name: str) -> Graph:
    """Return a shipped workflow at a small budget, with settings nodes for it, and a node for the scores."""
    graph: Graph = SHIPPED.WORKFLOWS[name]()
    for id, shipped in list(graph.items()):
        if shipped["class_type"] == "AdvUnlearnTrain":
            graph |= {socket: node(kind) for socket, kind in SETTINGS_NODES.items()}
            shipped["inputs"] |= {socket: [socket, 0] for socket in SETTINGS_NODES}
        if shipped["class_type"] == "AdvUnlearnEvaluate":
            graph["scores"] = node("PreviewAny", source=(id, 2))
    for shipped in graph.values():
        shipped["inputs"] |= SMALL.get(shipped["class_type"], {})
    return graph


def sample_graph(
    prompt: str = "a church", clip: tuple[str, int] = ("ckpt", 1), images: int = 1, steps: int = 3
) -> Graph:
    """Return a graph from text to images on the miniature; by default one image, good enough to compare with others."""
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "positive": node("CLIPTextEncode", clip=clip, text=prompt),
        "negative": node("CLIPTextEncode", clip=clip, text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=images),
        "sample": node(
            "KSampler",
            model=("ckpt", 0),
            seed=7,
            steps=steps,
            cfg=3.0,
            sampler_name="ddim",
            scheduler="ddim_uniform",
            positive=("positive", 0),
            negative=("negative", 0),
            latent_image=("empty", 0),
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=("sample", 0), vae=("ckpt", 2)),
        "save": node("SaveImage", images=("decode", 0), filename_prefix="t"),
    }


def load_graph(prompt: str = "a church", **values: Any) -> Graph:
    """Return a graph from text to images with the CLIP that Load Robust CLIP returns."""
    values = {"encoder": "none", "strength": 1.0, "clip": ("ckpt", 1), **values}
    return sample_graph(prompt, clip=("robust", 0)) | {"robust": node("AdvUnlearnLoadRobustCLIP", **values)}


# The least that trains: ESD for two iterations of one sample.
LEAST: dict[str, dict[str, Any]] = {
    "train": {
        "concept": "church",
        "kind": "object",
        "preset": "custom",
        "iterations": 2,
        "retain_set": "none",
        "retain_prompts": "",
        "resolution": 0,
        "memory": "auto",
        "seed": 0,
        "save_name": "robust_clip",
        "resume": False,
    },
    "training": {
        "mode": "esd",
        "lr": 3e-4,
        "retain_weight": 0.0,
        "warmup": 1,
        "batch": 1,
        "retain_batch": 1,
        "sample_every": 0,
    },
    "attack": {"steps": 1, "tokens": 2, "restarts": 1},
    "bank": {"trajectories": 2, "retain_trajectories": 2, "sampling_steps": 2},
}
SETTINGS_NODES = {
    "training": "AdvUnlearnTrainingSettings",
    "attack": "AdvUnlearnAttackSettings",
    "bank": "AdvUnlearnBankSettings",
}


def train_graph(name: str, **changes: Any) -> Graph:
    """Return a graph that trains on the miniature, by default the least that trains.

    Args:
        name: the name under which the encoder is saved.
        changes: inputs of the training node, and by the names training, attack and bank those of its settings nodes.
    """
    nodes = {socket: node(kind, **LEAST[socket] | changes.pop(socket, {})) for socket, kind in SETTINGS_NODES.items()}
    inputs = LEAST["train"] | {"save_name": name} | changes | {socket: (socket, 0) for socket in nodes}
    return nodes | {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "train": node("AdvUnlearnTrain", model=("ckpt", 0), clip=("ckpt", 1), **inputs),
        "name": node("PreviewAny", source=("train", 1)),
        "report": node("PreviewAny", source=("train", 3)),
    }


def evaluate_graph(budget: dict[str, Any], settings: dict[str, Any], after: tuple[str, int] = ("train", 0)) -> Graph:
    """Return the nodes that evaluate a CLIP next to the checkpoint's, with UnlearnDiffAtk and the miniature's judge.

    Args:
        budget: inputs of the evaluation node.
        settings: inputs of its settings node.
        after: the CLIP, by default what `train_graph` trains.
    """
    return {
        "judge": node("AdvUnlearnLoadJudge", judge="miniature"),
        "evaluate": node(
            "AdvUnlearnEvaluate",
            model=("ckpt", 0),
            clip_before=("ckpt", 1),
            clip_after=after,
            vae=("ckpt", 2),
            judge=("judge", 0),
            concept="church",
            kind="object",
            attack="unlearndiffatk",
            resolution=0,
            prompts="",
            retained_prompts="",
            evaluation=("settings", 0),
            **budget,
        ),
        "settings": node("AdvUnlearnEvaluationSettings", **settings),
        "scores": node("PreviewAny", source=("evaluate", 2)),
    }


def get_images(server: Server, outputs: dict[str, Any], key: str = "save") -> torch.Tensor:
    """Return the images of an output node, (N, 3, H, W) in [0, 1]."""
    images = [np.asarray(server.image(entry)) for entry in outputs[key]["images"]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def sample_images(server: Server, graph: Graph) -> torch.Tensor:
    """Run a graph and return the images that it saves."""
    return get_images(server, server.run(graph))


def is_same_image(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether images differ by at most one of 255 levels.

    Weights that were loaded in different ways may lie at differently aligned addresses, for which some processors
    compute matrix products that differ in the last bits.
    """
    return a.shape == b.shape and bool((a - b).abs().max() < 1.5 / 255)


def recognise_objects(images: torch.Tensor) -> list[str]:
    """Return what the miniature's judge sees in each image."""
    judge = ConvJudge.from_pretrained(miniature.judge_path())
    with torch.no_grad():
        return [judge.objects[i] if i < len(judge.objects) else "none" for i in judge(images).object.argmax(1)]


def attack_node(prompt: str, attack: str, **changes: Any) -> dict[str, Any]:
    """Return an attack of one step on the checkpoint's CLIP."""
    values: dict[str, Any] = {
        "steps": 1,
        "tokens": 3,
        "restarts": 1,
        "seed": 0,
        "resolution": 64,
        "embedding_name": f"adv_{attack}",
        "concept": "",
        "pictures": 1,
    }
    clips = {"model": ("ckpt", 0), "clip": ("ckpt", 1)}
    return node("AdvUnlearnAttack", prompt=prompt, attack=attack, **(clips | values | changes))


def describe_inputs(server: Server, name: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the type and the options of each input of a node."""
    described = server.get(f"object_info/AdvUnlearn{name}")[f"AdvUnlearn{name}"]["input"]
    inputs = {**described.get("required", {}), **described.get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in inputs.items()}


def is_widget(kind: Any) -> bool:
    """Return whether inputs of a type have a widget; earlier hosts describe a menu by the list of its entries."""
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
