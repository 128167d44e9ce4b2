"""The shipped workflows in the API's format: the source of workflows/*.json, also run by the host tests.

    python tools/workflows/graphs.py OUT      write OUT/<name>.json for each

`make.mjs` opens them in a running ComfyUI and saves them in the page's format.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

Graph = dict[str, Any]
CHECKPOINT, ENCODER, SDXL = "miniature.safetensors", "robust_clip_00001_.safetensors", "sd_xl_base_1.0.safetensors"
MINIATURE_SAMPLING = {"steps": 20, "cfg": 3.0, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
SDXL_SAMPLING = {"steps": 25, "cfg": 6.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}


def node(class_type: str, title: str = "", /, **inputs: Any) -> Graph:
    """Return one node; a link is a tuple (id, output)."""
    meta = {"_meta": {"title": title}} if title else {}
    return {
        "class_type": class_type,
        "inputs": {k: list(v) if isinstance(v, tuple) else v for k, v in inputs.items()},
    } | meta


def loader(checkpoint: str = CHECKPOINT) -> Graph:
    """Load a checkpoint, by default the miniature."""
    return {"1": node("CheckpointLoaderSimple", ckpt_name=checkpoint)}


def picture(
    first: int,
    clip: tuple[str, int],
    prompt: str,
    name: str,
    positive: tuple[str, int] | None = None,
    size: int = 64,
    batch: int = 4,
    sampling: Mapping[str, Any] = MINIATURE_SAMPLING,
) -> Graph:
    """Return text to image with a CLIP; node ids start at `first`, `size` is in pixels."""
    ids = [str(first + k) for k in range(6)]
    graph = {
        ids[0]: node("CLIPTextEncode", prompt, clip=clip, text=prompt),
        ids[1]: node("CLIPTextEncode", "nothing", clip=clip, text=""),
        ids[2]: node("EmptyLatentImage", width=size, height=size, batch_size=batch),
        ids[3]: node(
            "KSampler",
            model=("1", 0),
            seed=7,
            **sampling,
            positive=positive or (ids[0], 0),
            negative=(ids[1], 0),
            latent_image=(ids[2], 0),
            denoise=1.0,
        ),
        ids[4]: node("VAEDecode", samples=(ids[3], 0), vae=("1", 2)),
        ids[5]: node("SaveImage", name, images=(ids[4], 0), filename_prefix=f"advunlearn/{name}"),
    }
    if positive:
        del graph[ids[0]]
    return graph


def train(iterations: int = 30) -> Graph:
    """Train on the miniature in a minute or two: nodes 2 (training) and 100 to 102 (its settings)."""
    return {
        "2": node(
            "AdvUnlearnTrain",
            model=("1", 0),
            clip=("1", 1),
            vae=("1", 2),
            concept="church",
            kind="object",
            preset="auto",
            iterations=iterations,
            retain_set="auto",
            retain_prompts="",
            resolution=0,
            memory="auto",
            seed=0,
            save_name="robust_clip",
            resume=False,
            training=("100", 0),
            attack=("101", 0),
            bank=("102", 0),
        ),
        "100": node("AdvUnlearnTrainingSettings", lr=3e-4, warmup=8, batch=6, retain_batch=6, sample_every=15),
        "101": node("AdvUnlearnAttackSettings", steps=3, tokens=3, restarts=3),
        "102": node("AdvUnlearnBankSettings", trajectories=24, retain_trajectories=40, sampling_steps=8),
    }


def attack(clip: tuple[str, int], prompt: str, steps: int = 30, **more: Any) -> Graph:
    """Attack a CLIP."""
    return node(
        "AdvUnlearnAttack",
        clip=clip,
        model=("1", 0),
        prompt=prompt,
        attack="unlearndiffatk",
        steps=steps,
        tokens=5,
        restarts=4,
        seed=1000,
        resolution=0,
        embedding_name="adversarial",
        concept="",
        **more,
    )


def load_and_replace() -> Graph:
    """Sample one prompt with the CLIP before and after."""
    robust = {"2": node("AdvUnlearnLoadRobustCLIP", encoder=ENCODER, strength=1.0, clip=("1", 1))}
    return loader() | robust | picture(10, ("1", 1), "a church", "before") | picture(20, ("2", 0), "a church", "after")


def train_workflow() -> Graph:
    """Train, plot the loss, sample with the new CLIP."""
    shown = {
        "3": node("PreviewAny", "report", source=("2", 3)),
        "4": node("LossGraphNode", loss=("2", 2), filename_prefix="advunlearn_loss"),
    }
    return (
        loader()
        | train()
        | shown
        | picture(10, ("2", 0), "a church", "erased")
        | picture(20, ("2", 0), "a castle", "kept")
    )


def attack_workflow() -> Graph:
    """Attack a robust encoder and sample the adversarial prompt."""
    nodes = {
        "2": node("AdvUnlearnLoadRobustCLIP", encoder=ENCODER, strength=1.0, clip=("1", 1)),
        "3": attack(("2", 0), "a church", original_clip=("1", 1)),
        "4": node("PreviewAny", "report", source=("3", 4)),
    }
    return loader() | nodes | picture(10, ("2", 0), "a church", "attacked", positive=("3", 0))


def before_after() -> Graph:
    """Train and evaluate: the evaluation attacks the CLIP before and after."""
    nodes = train() | {
        "3": node("AdvUnlearnLoadJudge", judge="miniature"),
        "4": node(
            "AdvUnlearnEvaluate",
            model=("1", 0),
            clip_before=("1", 1),
            clip_after=("2", 0),
            vae=("1", 2),
            judge=("3", 0),
            concept="church",
            kind="object",
            attack="both",
            cases=6,
            attack_steps=10,
            seed=1000,
            resolution=0,
            prompts="",
            retained_prompts="",
            evaluation=("103", 0),
        ),
        "103": node("AdvUnlearnEvaluationSettings", judge_interval=5, sampling_steps=8),
        "5": node("SaveImage", "before and after", images=("4", 0), filename_prefix="advunlearn/evaluation"),
        "6": node("PreviewAny", "report", source=("4", 1)),
        "7": node("PreviewAny", "scores", source=("4", 2)),
    }
    return loader() | nodes


def strength_sweep() -> Graph:
    """Sample one prompt at strengths 0, 0.5 and 1."""
    graph = loader()
    for k, strength in enumerate((0.0, 0.5, 1.0)):
        robust = str(2 + k)
        graph |= {
            robust: node(
                "AdvUnlearnLoadRobustCLIP", f"strength {strength}", encoder=ENCODER, strength=strength, clip=("1", 1)
            )
        }
        graph |= picture(10 * (k + 1), (robust, 0), "a church", f"strength-{strength}")
    return graph


def sdxl() -> Graph:
    """Sample SDXL with and without a released encoder as its CLIP-L; CLIP-G stays and still knows the concept."""
    robust = node(
        "AdvUnlearnLoadRobustCLIP", "church erased", encoder="none", strength=1.0, released="church", clip=("1", 1)
    )
    shown = {"size": 1024, "batch": 1, "sampling": SDXL_SAMPLING}
    before = picture(10, ("1", 1), "a church on a hill", "sdxl-before", **shown)
    return loader(SDXL) | {"2": robust} | before | picture(20, ("2", 0), "a church on a hill", "sdxl-after", **shown)


WORKFLOWS = {
    "train": train_workflow,
    "load-and-replace": load_and_replace,
    "attack": attack_workflow,
    "before-and-after": before_after,
    "strength-sweep": strength_sweep,
    "sdxl": sdxl,
}


def main(out: str) -> None:
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in WORKFLOWS.items():
        (folder / f"{name}.json").write_text(json.dumps(make(), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
