"""Models distilled to a few steps are told by the files that the graph loads: name, title, guidance embedding."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pack import import_from_pack
from safetensors.torch import save_file

loaded_files = import_from_pack("nodes.loaded_files")
errors = import_from_pack("advunlearn.errors")


def make_graph(checkpoint: str, lora: str = "style.safetensors", encoder: str = "robust.safetensors") -> dict[str, Any]:
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": lora}},
        "3": {"class_type": "AdvUnlearnLoadRobustCLIP", "inputs": {"clip": ["2", 1], "encoder": encoder}},
        "4": {"class_type": "AdvUnlearnTrain", "inputs": {"model": ["2", 0], "clip": ["3", 0], "concept": "a turbo"}},
    }


def check(graph: dict[str, Any] | None, folder: pathlib.Path | None = None) -> None:
    """Check a graph whose files are in a folder; None: the host lists none of them."""

    def find_path(name: str) -> pathlib.Path | None:
        return folder / name if folder and (folder / name).is_file() else None

    loaded_files.check_loaded_files(SimpleNamespace(prompt=graph, unique_id="4"), find_path)


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


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.time_embed.cond_proj.weight",
        "time_embed.cond_proj.weight",
        "time_embedding.cond_proj.weight",
    ],
)
def test_the_unet_of_an_lcm_is_refused_by_its_guidance_embedding(tmp_path: pathlib.Path, name: str) -> None:
    save_file({"conv_in.bias": torch.zeros(1)}, tmp_path / "xl.safetensors")
    check(make_graph("xl.safetensors"), tmp_path)
    save_file({name: torch.zeros(1), "conv_in.bias": torch.zeros(1)}, tmp_path / "xl.safetensors")
    with pytest.raises(
        errors.AdvUnlearnError, match=r"xl.safetensors is a model distilled for few steps \(LCM\), whose"
    ):
        check(make_graph("xl.safetensors"), tmp_path)


def test_a_lora_is_refused_by_its_title(tmp_path: pathlib.Path) -> None:
    save_file({"a.alpha": torch.ones(1)}, tmp_path / "fast.safetensors", {"modelspec.title": "Hyper-SDXL 8 steps"})
    with pytest.raises(errors.AdvUnlearnError, match="is named 'Hyper'"):
        check(make_graph("xl.safetensors", lora="fast.safetensors"), tmp_path)


def test_other_files_texts_and_the_clip_are_not_refused() -> None:
    check(make_graph("sd_xl_base_1.0.safetensors", encoder="turbo_engine.safetensors"))
    before_the_lora = make_graph("xl.safetensors", encoder="turbo_engine.safetensors")
    before_the_lora["3"]["inputs"]["clip"] = ["1", 1]
    before_the_lora["2"]["inputs"]["clip"] = ["3", 0]
    check(before_the_lora)
    check(None)  # a node that runs outside of a graph
    check({})  # a node inside a subgraph, of which the graph of the queue knows nothing


def test_a_loop_of_links_ends() -> None:
    graph = make_graph("xl.safetensors")
    graph["1"]["inputs"]["model"] = ["2", 0]
    check(graph)
