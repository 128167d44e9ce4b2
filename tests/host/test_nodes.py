"""The nodes in the real ComfyUI, over HTTP, on the miniature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from advunlearn import miniature
from advunlearn.judges.convnet import ConvJudge

from .conftest import CHECKPOINT
from .server import Server, node

pytestmark = pytest.mark.host
IDS = ("Train", "Attack", "LoadRobustCLIP", "SaveRobustCLIP", "Evaluate", "LoadJudge")


def graph(prompt: str = "a church", clip: tuple[str, int] = ("ckpt", 1), seed: int = 7) -> dict:
    """Text to image on the miniature."""
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "positive": node("CLIPTextEncode", clip=clip, text=prompt),
        "negative": node("CLIPTextEncode", clip=clip, text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=4),
        "sample": node(
            "KSampler", model=("ckpt", 0), seed=seed, steps=20, cfg=3.0, sampler_name="ddim", scheduler="ddim_uniform",
            positive=("positive", 0), negative=("negative", 0), latent_image=("empty", 0), denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=("sample", 0), vae=("ckpt", 2)),
        "save": node("SaveImage", images=("decode", 0), filename_prefix="t"),
    }  # fmt: skip


def pictures(server: Server, outputs: dict, key: str = "save") -> torch.Tensor:
    """Return the pictures of an output node, (N, 3, H, W)."""
    images = [np.asarray(server.image(i)) for i in outputs[key]["images"]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def objects(images: torch.Tensor) -> list[str]:
    """Return what the judge sees."""
    judge = ConvJudge.from_pretrained(miniature.judge_path())
    with torch.no_grad():
        return [judge.objects[i] if i < len(judge.objects) else "none" for i in judge(images).object.argmax(1)]


def test_every_node_is_there_with_a_tooltip_on_every_input_and_output(server: Server) -> None:
    info = server.get("object_info")
    for name in IDS:
        described = info[f"AdvUnlearn{name}"]
        assert described["category"] == "AdvUnlearn" and described["description"]
        inputs = {**described["input"].get("required", {}), **described["input"].get("optional", {})}
        assert all(options[1].get("tooltip") for options in inputs.values()), name
        assert len(described["output_tooltips"]) == len(described["output"]) and all(described["output_tooltips"]), name


def test_the_widened_miniature_draws_what_is_asked(server: Server) -> None:
    images = pictures(server, server.run(graph("a castle")))
    assert objects(images).count("castle") >= 3
