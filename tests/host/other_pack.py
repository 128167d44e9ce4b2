"""Another pack, which `test_guard.py` puts into custom_nodes: a node, a folder of models, and two handlers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import folder_paths
import torch
from server import PromptServer

Request = dict[str, Any]
MARKERS = ("a church through a handler", "a church through a late handler")  # prompts that the handlers change


class TextToImage:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {})}}

    def run(self, text: str) -> tuple[torch.Tensor]:
        return (torch.zeros(1, 64, 64, 3),)


NODE_CLASS_MAPPINGS = {"TextToImage": TextToImage}


def make_handler(marker: str) -> Callable[[Request], Request]:
    """Return a handler of submitted graphs that gives those with a certain prompt another text encoder."""

    def handle(request: Request) -> Request:
        graph = request["prompt"]
        if "positive" in graph and graph["positive"]["inputs"]["text"] == marker:
            inputs = {"clip_name": "other.safetensors", "type": "stable_diffusion"}
            graph["handler"] = {"class_type": "CLIPLoader", "inputs": inputs}
            for name in ("positive", "negative"):
                graph[name]["inputs"]["clip"] = ["handler", 0]
        return request

    return handle


async def register_late(_: Any) -> None:
    """Register a handler when the server starts, behind those that were registered before."""
    PromptServer.instance.add_on_prompt_handler(make_handler(MARKERS[1]))


PromptServer.instance.add_on_prompt_handler(make_handler(MARKERS[0]))
PromptServer.instance.app.on_startup.append(register_late)
folder_paths.add_model_folder_path("loras", os.path.join(folder_paths.get_output_directory(), "late"))
