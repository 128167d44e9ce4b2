"""Models distilled to a few steps are told by the names of the files that the graph loads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pack import import_from_pack

loaded_files = import_from_pack("nodes.loaded_files")
errors = import_from_pack("advunlearn.errors")


def make_graph(checkpoint: str, lora: str = "style.safetensors", encoder: str = "robust.safetensors") -> dict[str, Any]:
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": lora}},
        "3": {"class_type": "AdvUnlearnLoadRobustCLIP", "inputs": {"clip": ["2", 1], "encoder": encoder}},
        "4": {"class_type": "AdvUnlearnTrain", "inputs": {"model": ["2", 0], "clip": ["3", 0], "concept": "a turbo"}},
    }


def check(graph: dict[str, Any] | None) -> None:
    loaded_files.check_loaded_files(SimpleNamespace(prompt=graph, unique_id="4"))


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"checkpoint": "sd_xl_turbo_1.0_fp16.safetensors"}, "turbo"),
        ({"checkpoint": "juggernautXL_v9Rdphoto2Lightning.SAFETENSORS"}, "Lightning"),
        ({"checkpoint": "xl.safetensors", "lora": "speed/sdxl-lcm.safetensors"}, "lcm"),
        ({"checkpoint": "xl.safetensors", "lora": "Hyper-SDXL-8steps.safetensors"}, "Hyper"),
    ],
)
def test_a_distilled_model_or_lora_before_the_model_is_refused_by_its_name(files: dict[str, str], word: str) -> None:
    with pytest.raises(errors.AdvUnlearnError, match=rf"is named '{word}'.*use the text-to-image model"):
        check(make_graph(**files))


def test_other_files_texts_and_the_clip_are_not_refused() -> None:
    check(make_graph("sd_xl_base_1.0.safetensors", encoder="turbo_engine.safetensors"))
    check(None)  # a node that runs outside of a graph
    check({})  # a node inside a subgraph, of which the graph of the queue knows nothing


def test_a_loop_of_links_ends() -> None:
    graph = make_graph("xl.safetensors")
    graph["1"]["inputs"]["model"] = ["2", 0]
    check(graph)
