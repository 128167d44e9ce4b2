"""Runs inside the host's own Python: a second CLIP that is not of the MODEL's family.

python inside_other_clip.py HOST_FOLDER PACK_FOLDER -      prints one JSON object

The models have no weights.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import inside  # first: it finds the host

# isort: split
import comfy.sdxl_clip
import inside_refusals as kinds
import torch


def ask(function: Callable[..., Any], *arguments: Any) -> str:
    """Return why a function refuses its arguments."""
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return ""


def main() -> dict[str, str]:
    """Give SDXL's CLIP to a model of Stable Diffusion 1.x as an attack and an evaluation do, and to its CLIP."""
    host = inside.load_pack()
    attack, evaluate, encoders = (
        importlib.import_module(f"pack.nodes.{n}") for n in ("attack", "evaluate", "encoders")
    )
    model = SimpleNamespace(denoiser=SimpleNamespace(patcher=kinds.make("SD15", **kinds.SD15)))
    clip = kinds.make_clip(comfy.sdxl_clip.SDXLClipModel)
    status = SimpleNamespace(beat=None)
    with torch.inference_mode():  # as every node runs
        return {
            "attack": ask(host.make_other_encoder, model, clip),
            "evaluation": ask(evaluate.make_evaluator, status, model, clip, None, None, None, None),
            "one encoder": ask(attack._check_inputs, clip, "a church", "pez", 1, 1, "name", clip),
            "lora": ask(encoders.save_lora_file, clip, kinds.make_clip(torch.nn.Module), "lora", 8, {}),
        }


if __name__ == "__main__":
    print(json.dumps(main()))
