"""The shipped workflows in the API's format: the source of workflows/*.json, also run by the host tests.

`make.py` opens them in a running ComfyUI, arranges them as `layout.py` says, and saves them in the page's format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Graph = dict[str, Any]
Link = tuple[str, int]  # (node id, output)
CHECKPOINT = "miniature.safetensors"
# A name for each model, and none that a new node has: an encoder is of no use to another model.
NAME, SD15_NAME, XL_NAME = "robust_miniature", "robust_sd15", "robust_sdxl"
NEWEST = "newest of {}"  # what was saved last under a name: the workflows use the last training, not the first
SD15, SDXL = "v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors"
SIDE_BY_SIDE = "without and with the attack"
MINIATURE_SAMPLING = {"steps": 20, "cfg": 3.0, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
SD15_SAMPLING = {"steps": 20, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
SDXL_SAMPLING = {"steps": 25, "cfg": 6.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
SDXL_PICTURES: dict[str, Any] = {"size": 1024, "batch": 1, "sampling": SDXL_SAMPLING}


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


def pictures(
    first: int,
    clip: Link,
    prompt: str,
    name: str,
    positive: Link | None = None,
    size: int = 64,
    batch: int = 4,
    sampling: Mapping[str, Any] = MINIATURE_SAMPLING,
) -> Graph:
    """Return text to image with a CLIP, small images enlarged; node ids start at `first`, `size` is in pixels."""
    ids = [str(first + k) for k in range(7)]
    graph = {
        ids[0]: node("CLIPTextEncode", prompt, clip=clip, text=prompt),
        ids[1]: node("CLIPTextEncode", "empty prompt", clip=clip, text=""),
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
        ids[5]: node("ImageScaleBy", image=(ids[4], 0), upscale_method="lanczos", scale_by=256 / size),
        ids[6]: node("SaveImage", name, images=(ids[5], 0), filename_prefix=f"advunlearn/{name}"),
    }
    if positive:
        del graph[ids[0]]
    if size >= 256:  # large enough to see
        del graph[ids[5]]
        graph[ids[6]]["inputs"]["images"] = [ids[4], 0]
    return graph


def train(concept: str, preset: str, save_name: str) -> Graph:
    """Train on the model of node 1."""
    return node(
        "AdvUnlearnTrain",
        model=("1", 0),
        clip=("1", 1),
        vae=("1", 2),
        concept=concept,
        kind="object",
        preset=preset,
        iterations=0,
        retain_set="auto",
        retain_prompts="",
        resolution=0,
        memory="auto",
        seed=0,
        save_name=save_name,
        resume=False,
    )


def robust(strength: float = 1.0, title: str = "", **values: Any) -> Graph:
    """Load what `train` made, or another encoder."""
    values = {"encoder": NEWEST.format(NAME), "released": "none", **values}
    return node("AdvUnlearnLoadRobustCLIP", title, strength=strength, clip=("1", 1), **values)


def train_workflow(checkpoint: str = CHECKPOINT, preset: str = "quick", save_name: str = NAME, **shown: Any) -> Graph:
    """Train, then sample the concept and its neighbour with the new CLIP."""
    nodes = {
        "2": train("church", preset, save_name),
        "3": node("PreviewAny", "report", source=("2", 3)),
    }
    return (
        loader(checkpoint)
        | nodes
        | pictures(10, ("2", 0), "a church", "erased", **shown)
        | pictures(20, ("2", 0), "a castle", "kept", **shown)
    )


def train_sd15() -> Graph:
    """Train on Stable Diffusion 1.5 with the published settings."""
    return train_workflow(SD15, "auto", SD15_NAME, size=512, batch=1, sampling=SD15_SAMPLING)


def load_and_replace() -> Graph:
    """Sample one prompt with the CLIP before and after."""
    before = pictures(10, ("1", 1), "a church", "before")
    return loader() | {"2": robust()} | before | pictures(20, ("2", 0), "a church", "after")


def attack_workflow() -> Graph:
    """Attack a robust encoder, let a judge compare, and sample the adversarial prompt."""
    attack = node(
        "AdvUnlearnAttack",
        model=("1", 0),
        clip=("2", 0),
        original_clip=("1", 1),
        vae=("1", 2),
        judge=("5", 0),
        prompt="a church",
        concept="church",
        attack="unlearndiffatk",
        steps=30,
        tokens=5,
        restarts=4,
        seed=1000,
        resolution=0,
        embedding_name="adversarial",
    )
    nodes = {
        "2": robust(),
        "3": attack,
        "4": node("PreviewAny", "report", source=("3", 4)),
        "5": node("AdvUnlearnLoadJudge", judge="miniature"),
        "6": node("SaveImage", SIDE_BY_SIDE, images=("3", 5), filename_prefix="advunlearn/attack"),
    }
    return loader() | nodes | pictures(20, ("2", 0), "a church", "attacked", positive=("3", 0))


def before_after() -> Graph:
    """Evaluate what `train` made: attack the CLIP before and after."""
    evaluate = node(
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
        evaluation=("7", 0),
    )
    nodes = {
        "2": robust(),
        "3": node("AdvUnlearnLoadJudge", judge="miniature"),
        "4": evaluate,
        "5": node("SaveImage", "before and after", images=("4", 0), filename_prefix="advunlearn/evaluation"),
        "6": node("PreviewAny", "report", source=("4", 1)),
        "7": node("AdvUnlearnEvaluationSettings", judge_interval=5, sampling_steps=8, repeats=1),
    }
    return loader() | nodes


def strength_sweep() -> Graph:
    """Sample one prompt at strengths 0, 0.5 and 1."""
    graph = loader()
    for k, strength in enumerate((0.0, 0.5, 1.0)):
        graph |= {str(2 + k): robust(strength, f"strength {strength}")}
        graph |= pictures(10 * (k + 1), (str(2 + k), 0), "a church", f"strength-{strength}")
    return graph


def train_sdxl() -> Graph:
    """Train both text encoders of SDXL with the published settings."""
    return train_workflow(SDXL, "auto", XL_NAME, **SDXL_PICTURES)


def sdxl() -> Graph:
    """Sample one prompt with SDXL's two text encoders, and with the pair that `train_sdxl` made."""
    after = {"2": robust(title="church erased", encoder=NEWEST.format(XL_NAME))}
    before = pictures(10, ("1", 1), "a church", "sdxl-before", **SDXL_PICTURES)
    return loader(SDXL) | after | before | pictures(20, ("2", 0), "a church", "sdxl-after", **SDXL_PICTURES)


WORKFLOWS = {
    "train": train_workflow,
    "train-sd15": train_sd15,
    "train-sdxl": train_sdxl,
    "before-and-after": before_after,
    "load-and-replace": load_and_replace,
    "attack": attack_workflow,
    "strength-sweep": strength_sweep,
    "sdxl": sdxl,
}
