"""The nodes in the real ComfyUI, over HTTP, on the miniature."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from advunlearn import miniature
from advunlearn.judges.convnet import ConvJudge

from .conftest import CHECKPOINT
from .server import HostError, Server, node

pytestmark = pytest.mark.host
IDS = (
    "Train",
    "Attack",
    "LoadRobustCLIP",
    "SaveRobustCLIP",
    "Evaluate",
    "LoadJudge",
    "LoadNudityJudge",
    "LoadClassifierJudge",
    "LoadCLIPJudge",
)


def graph(prompt: str = "a church", clip: tuple[str, int] = ("ckpt", 1), seed: int = 7) -> dict:
    """Text to image on the miniature."""
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "positive": node("CLIPTextEncode", clip=clip, text=prompt),
        "negative": node("CLIPTextEncode", clip=clip, text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=4),
        "sample": node(
            "KSampler",
            model=("ckpt", 0),
            seed=seed,
            steps=20,
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


def pictures(server: Server, outputs: dict, key: str = "save") -> torch.Tensor:
    """Return the pictures of an output node, (N, 3, H, W)."""
    images = [np.asarray(server.image(i)) for i in outputs[key]["images"]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def is_same_picture(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether pictures differ by at most one of 255 levels.

    Weights that were loaded in different ways may lie at differently aligned addresses, for which some processors
    compute matrix products that differ in the last bits.
    """
    return a.shape == b.shape and bool((a - b).abs().max() < 1.5 / 255)


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


def train_graph(name: str, **changes: object) -> dict:
    """Train on the miniature with the fewest steps that show something."""
    values = {
        "concept": "church",
        "preset": "custom",
        "kind": "object",
        "mode": "esd",
        "iterations": 12,
        "attack_steps": 2,
        "lr": 3e-4,
        "retain_set": "none",
        "retain_weight": 0.0,
        "seed": 0,
        "resolution": 64,
        "save_name": name,
        "resume": False,
        "retain_prompts": "",
        "negative_guidance": 1.0,
        "warmup": 2,
        "batch": 4,
        "clean_share": 0.25,
        "retain_batch": 2,
        "trainable": "layers",
        "num_layers": 0,
        "sample_every": 0,
        "checkpointing": False,
        "dtype": "default",
        "retain_mode": "loss",
        "final_norm": "auto",
        "schedule": "mixed",
        "attack_position": "prefix",
        "attack_per_k": 3,
        "attack_start_text": "",
        "attack_interval": 1,
        "attack_norm": "linf",
        "attack_step_size": 0.5,
        "attack_update": "sign",
        "attack_tokens": 2,
        "attack_start": "token",
        "attack_restarts": 2,
        "attack_resample": "step",
        "attack_radius": 0.0,
        "attack_unit": "sigma",
        "bank_trajectories": 8,
        "bank_retain_trajectories": 8,
        "bank_sampling_steps": 10,
        "bank_guidance_scale": 3.0,
    }
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "train": node("AdvUnlearnTrain", model=("ckpt", 0), clip=("ckpt", 1), **(values | changes)),
        "name": node("PreviewAny", source=("train", 1)),
        "text": node("PreviewAny", source=("train", 3)),
    }


def test_training_changes_the_robust_clip_and_leaves_the_users_alone(server: Server, base: pathlib.Path) -> None:
    before = pictures(server, server.run(graph()))
    made = train_graph("erased")
    made |= graph(clip=("train", 0))
    outputs = server.run(made)
    name = outputs["name"]["text"][0]
    assert "12 iterations" in outputs["text"]["text"][0]
    after = pictures(server, outputs)
    assert (after - before).abs().mean() > 0.02
    file = base / "output" / "clip" / name
    tensors = load_file(file)
    assert "text_projection.weight" in tensors and len(tensors) == 197
    # The user's own CLIP draws what it drew, and the saved encoder draws what the live one did.
    again = graph() | {"again": node("PreviewAny", source="run once more")}
    assert torch.equal(pictures(server, server.run(again)), before)
    reloaded = graph(clip=("robust", 0)) | {
        "robust": node("AdvUnlearnLoadRobustCLIP", encoder=name, strength=1.0, clip=("ckpt", 1))
    }
    assert is_same_picture(pictures(server, server.run(reloaded)), after)
    untouched = graph(clip=("robust", 0)) | {
        "robust": node("AdvUnlearnLoadRobustCLIP", encoder=name, strength=0.0, clip=("ckpt", 1))
    }
    assert is_same_picture(pictures(server, server.run(untouched)), before)
    alone = graph(clip=("robust", 0)) | {"robust": node("AdvUnlearnLoadRobustCLIP", encoder=name, strength=1.0)}
    assert (pictures(server, server.run(alone)) - after).abs().max() < 0.05
    saved = graph(clip=("robust", 0)) | {
        "robust": node("AdvUnlearnLoadRobustCLIP", encoder=name, strength=1.0, clip=("ckpt", 1)),
        "file": node("AdvUnlearnSaveRobustCLIP", clip=("robust", 0), name="again", format="safetensors", rank=8),
        "lora": node(
            "AdvUnlearnSaveRobustCLIP", clip=("robust", 0), base=("ckpt", 1), name="again", format="lora", rank=8
        ),
        "residual": node("PreviewAny", source=("lora", 1)),
    }
    report = server.run(saved)["residual"]["text"][0]
    assert "residual" in report and (base / "output" / "loras" / "again_00001_.safetensors").is_file()
    for file in ("clip/again_00001_.safetensors", "loras/again_00001_.safetensors"):  # and say which graph made them
        with safe_open(base / "output" / file, "pt") as written:
            assert json.loads(written.metadata()["prompt"])["file"]["class_type"] == "AdvUnlearnSaveRobustCLIP"
    again = load_file(base / "output" / "clip" / "again_00001_.safetensors")
    assert all(torch.equal(again[k], tensors[k]) for k in tensors)
    stock = graph(clip=("robust", 0)) | {"robust": node("CLIPLoader", clip_name=name, type="stable_diffusion")}
    assert (pictures(server, server.run(stock)) - after).abs().max() < 0.05


def test_cancel_keeps_the_run_and_resume_ends_bit_for_bit(server: Server, base: pathlib.Path) -> None:
    changes: dict[str, Any] = {"mode": "advunlearn", "iterations": 6}
    whole = server.run(train_graph("whole", **changes))["name"]["text"][0]
    prompt_id = server.queue(train_graph("cut", **changes))
    folder = base / "output" / "advunlearn" / "cut"
    # The bar's value says how far the run is: eight trajectories, then iterations of one and three units.
    server.wait_for_progress("train", 8 + 4)
    server.request("interrupt", {})
    with pytest.raises(HostError, match="execution_interrupted"):
        server.wait(prompt_id)
    assert (folder / "state.pt").is_file() and not list((base / "output" / "clip").glob("cut*"))
    name = server.run(train_graph("cut", resume=True, **changes))["name"]["text"][0]
    a, b = (load_file(base / "output" / "clip" / n) for n in (whole, name))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not list(folder.iterdir())


def test_the_adversarial_modes_run_and_report_their_losses(server: Server) -> None:
    shipped_and_own = {"retain_set": "imagenet", "retain_prompts": "a red house"}
    for mode, how in (
        ("advunlearn", {}),
        ("fast", {"checkpointing": True, "attack_position": "replace", **shipped_and_own}),
        ("official", {"dtype": "bfloat16"}),
    ):
        changes = {"mode": mode, "iterations": 4, "retain_set": "miniature", "retain_weight": 1.0, **how}
        report = server.run(train_graph(mode, **changes))["text"]["text"][0]
        assert "attack_end" in report and re.search(r", retain \d", report), report
        assert mode != "fast" or "992 retained prompts" in report, report


@pytest.mark.parametrize("with_vae", [True, False])
def test_a_run_on_two_concepts_shows_its_curve_and_its_samples(server: Server, with_vae: bool) -> None:
    graph = train_graph("two", concept="church\ncastle", iterations=5, sample_every=2, retain_prompts="a dog")
    if with_vae:
        graph["train"]["inputs"]["vae"] = ["ckpt", 2]
    server.last_picture = None
    assert "'church', 'castle'" in server.run(graph)["text"]["text"][0]
    shown = server.last_picture
    assert shown is not None and shown.width == 512 and shown.height > 400  # the curve, and the samples under it
    samples = np.asarray(shown)[320:, :512].astype(float)
    assert samples.std() > 20  # not an empty strip


def test_a_preset_takes_the_place_of_the_settings(server: Server) -> None:
    prompt_id = server.queue(train_graph("preset", preset="nudity", mode="official", retain_set="coco", sample_every=0))
    # The published run has 50 sampling steps and 1000 iterations, 200 of them warm-up: its bar counts 30 steps each.
    total = server.wait_for_progress("train", 1)["max"]
    server.request("interrupt", {})
    with pytest.raises(HostError, match="execution_interrupted"):
        server.wait(prompt_id)
    assert total == 1000 + 800 * 30


@pytest.mark.parametrize(
    ("attack", "size", "keeps", "with_original"),
    [
        ("unlearndiffatk", 3, "dog", False),
        ("soft_prefix", 3, "dog", False),
        ("p4d_k", 2, "dog", True),
        ("mma", 3, "", True),
        ("cce", 1, "photo of a embedding:adv_cce", False),
    ],
)
def test_an_attack_gives_conditioning_prompt_and_embedding(
    server: Server, base: pathlib.Path, attack: str, size: int, keeps: str, with_original: bool
) -> None:
    original = {"original_clip": ("ckpt", 1)} if with_original else {}
    made = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "attack": node(
            "AdvUnlearnAttack",
            model=("ckpt", 0),
            clip=("ckpt", 1),
            prompt="photo of a dog",
            attack=attack,
            steps=1 if attack == "mma" else 4,
            tokens=3,
            restarts=2,
            seed=0,
            resolution=64,
            embedding_name=f"adv_{attack}",
            attack_lr=0.05,
            prefix_lr=0.3,
            prefix_radius=1.0,
            concept="dog",
            **original,
        ),
        "prompt": node("PreviewAny", source=("attack", 1)),
        "report": node("PreviewAny", source=("attack", 4)),
    }
    drawn = graph()
    drawn["sample"]["inputs"]["positive"] = ["attack", 0]
    outputs = server.run(drawn | made)
    text = outputs["prompt"]["text"][0]
    assert keeps in text and "denoising loss" in outputs["report"]["text"][0]
    assert attack != "mma" or "dog" not in text
    assert load_file(base / "models" / "embeddings" / f"adv_{attack}.safetensors")["clip_l"].shape == (size, 768)
    # What the node gives and what a person gets by typing the prompt are the same.
    assert is_same_picture(pictures(server, server.run(graph(text))), pictures(server, outputs))


def test_a_target_picture_is_what_the_attack_looks_for(server: Server) -> None:
    def attack(prompt: str, **target: object) -> dict:
        return node(
            "AdvUnlearnAttack",
            model=("ckpt", 0),
            clip=("ckpt", 1),
            prompt=prompt,
            attack="soft_prefix",
            steps=1,
            tokens=2,
            restarts=1,
            seed=0,
            resolution=64,
            embedding_name="target",
            attack_lr=0.05,
            prefix_lr=0.3,
            prefix_radius=1.0,
            **target,
        )

    made = graph("a church") | {
        "latent": attack("a church", target=("sample", 0)),
        "image": attack("a church", image=("decode", 0), vae=("ckpt", 2)),
        "other": attack("a dog", target=("sample", 0)),
    }
    made |= {f"{name}_loss": node("PreviewAny", source=(name, 3)) for name in ("latent", "image", "other")}
    outputs = server.run(made)
    latent, image, other = (
        json.loads(outputs[f"{name}_loss"]["text"][0])["loss"][0] for name in ("latent", "image", "other")
    )
    # The same picture twice, once through the VAE; a dog is a bad description of it.
    assert abs(image - latent) < 0.25 * latent and other > 1.5 * latent, (latent, image, other)
    with pytest.raises(HostError, match="image is connected but vae is not"):
        server.run(graph("a church") | {"attack": attack("a church", image=("decode", 0))})
    blind = attack("a church", target=("sample", 0))
    blind["inputs"]["attack"] = "ring_a_bell"
    with pytest.raises(HostError, match="ring_a_bell needs the CLIP before erasing; connect it to original_clip"):
        server.run(graph("a church") | {"attack": blind})


def test_bad_input_is_refused_in_one_sentence(server: Server, base: pathlib.Path) -> None:
    with pytest.raises(HostError, match="warmup is 2 of 2 iterations"):
        server.run(train_graph("bad", mode="advunlearn", iterations=2))
    (base / "models" / "text_encoders" / "t5.safetensors").write_bytes(b"not safetensors")
    loaded = {"robust": node("AdvUnlearnLoadRobustCLIP", encoder="t5.safetensors", strength=1.0, clip=("ckpt", 1))}
    with pytest.raises(HostError, match="is not a readable safetensors file"):
        server.run(graph(clip=("robust", 0)) | loaded)
    loaded["robust"]["inputs"]["encoder"] = "nothing.safetensors"
    with pytest.raises(HostError, match="nothing.safetensors"):
        server.run(graph(clip=("robust", 0)) | loaded)
