"""Another pack, which `test_signs_of_life.py` puts into custom_nodes: a model whose every prediction takes a second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

SECONDS = 1.0


def wait(h: Any, transformer_options: Mapping[str, Any]) -> Any:
    """Wait in the first block of a UNet; return the block's output as it is."""
    if transformer_options["block"] == ("input", 0):
        time.sleep(SECONDS)
    return h


class SlowModel:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def run(self, model: Any) -> tuple[Any]:
        slow = model.clone()
        slow.set_model_input_block_patch(wait)
        return (slow,)


NODE_CLASS_MAPPINGS = {"SlowModel": SlowModel}
