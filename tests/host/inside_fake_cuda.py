"""Runs inside the host's own Python: what the nodes do with MODEL and CLIP on a GPU, on CUDA tensors without CUDA.

python inside_fake_cuda.py HOST_FOLDER PACK_FOLDER CHECKPOINT      prints one JSON object
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
from types import SimpleNamespace
from typing import Any
from unittest import mock

import inside  # first: it finds the host

# isort: split
import comfy.model_management as management
import comfy.sd
import folder_paths
import torch

sys.path[:0] = [inside.pack_folder, f"{inside.pack_folder}/tests/support"]

TRAIN = {
    "concept": "church",
    "kind": "object",
    "preset": "custom",
    "iterations": 1,
    "retain_set": "none",
    "retain_prompts": "a dog",
    "resolution": 0,
    "memory": "fast",
    "seed": 0,
    "save_name": "robust",
    "resume": False,
    "training": {"train": {"warmup": 0, "batch": 1, "retain_batch": 1}, "node": {"sample_every": 1}},
    "attack": {"attack": {"steps": 1, "restarts": 1}},
    "bank": {"bank": {"trajectories": 1, "retain_trajectories": 1, "sampling_steps": 2}},
}
ATTACK = {
    "prompt": "a church",
    "concept": "church",
    "attack": "unlearndiffatk",
    "steps": 1,
    "tokens": 2,
    "restarts": 1,
    "seed": 0,
    "resolution": 0,
    "embedding_name": "found",
    "pictures": 1,
    "sampling_steps": 2,  # no widget has it
}
EVALUATE = {
    "attack": "soft_prefix",
    "concept": "church",
    "kind": "object",
    "cases": 1,
    "attack_steps": 1,
    "seed": 0,
    "resolution": 0,
    "prompts": "",
    "retained_prompts": "a dog | dog",
    "evaluation": {"judge_interval": 1, "attack_tokens": 2, "sampling_steps": 2, "repeats": 0},
}


def load_on_cuda(patchers: list[Any], **_: Any) -> None:
    """Do as the host's load_models_gpu, without a driver: move the weights to the device of each patcher."""
    for patcher in patchers:
        patcher.model.to(patcher.load_device)


# What needs a driver. `cuda_device_context` is of recent hosts.
WITHOUT_DRIVER = {
    "load_models_gpu": load_on_cuda,
    "cuda_device_context": contextlib.nullcontext,
    "get_free_memory": lambda *_, **__: 2**33,
}


def run_node(module: str, name: str, **values: Any) -> list[Any]:
    """Execute a node outside of a graph; return its outputs."""
    node = getattr(importlib.import_module(f"pack.nodes.{module}"), name)
    alone = type("Alone", (node,), {"hidden": SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)})
    return list(alone.execute(**values).args)


def run_nodes(model: Any, clip: Any, vae: Any) -> dict[str, Any]:
    """Train, attack and evaluate; return what the nodes measured, and the devices of the weights."""
    judge = run_node("judges", "LoadJudge", judge="miniature")[0]
    robust, _, training, _ = run_node("train", "TrainAdvUnlearnEncoder", model=model, clip=clip, vae=vae, **TRAIN)
    attack = {"model": model, "clip": robust, "original_clip": clip, "vae": vae, "judge": judge, **ATTACK}
    _, text, _, losses, report, _ = run_node("attack", "AdversarialPromptAttack", **attack)
    evaluation = {"model": model, "clip_before": clip, "clip_after": robust, "vae": vae, "judge": judge, **EVALUATE}
    scores = run_node("evaluate", "EvaluateRobustness", **evaluation)[2]
    modules = {"model": model.model, "clip": clip.cond_stage_model, "vae": vae.first_stage_model}
    return {
        "training_losses": training["loss"],
        "adversarial_prompt": text,
        "attack_losses": losses["loss"],
        "verdict": report.splitlines()[1:3],
        "scores": json.loads(scores)["models"],
        "devices": {name: str(next(module.parameters()).device) for name, module in modules.items()},
    }


def main() -> dict[str, Any]:
    """Run the nodes on the CPU and on fake CUDA tensors."""
    fake_cuda = importlib.import_module("fake_cuda")
    host = inside.load_pack()
    samples = importlib.import_module("pack.advunlearn.reporting.training_samples")
    sample = samples.ddim_sample
    samples.ddim_sample = lambda *inputs: sample(*inputs[:4], 2, inputs[5])  # of the pictures on the node, in 2 steps
    out = {}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:  # as every node runs
        folder_paths.set_output_directory(folder)
        folder_paths.add_model_folder_path("embeddings", folder, is_default=True)
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            inside.checkpoint, output_vae=True, output_clip=True
        )
        out["cpu"] = run_nodes(model, clip, vae)
        for patcher in (model, clip.patcher, vae.patcher):
            patcher.load_device = fake_cuda.CUDA
        vae.device = fake_cuda.CUDA
        with (
            host.enable_gradients(),
            fake_cuda.fake_cuda(),
            mock.patch.multiple(management, create=True, **WITHOUT_DRIVER),
        ):
            out["cuda"] = run_nodes(model, clip, vae)
    return out


if __name__ == "__main__":
    print(json.dumps(main()))
