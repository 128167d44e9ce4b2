"""The settings of files: the model, the retained prompts, and the output of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .base import Dtype, Validated, setting

PredictionType = Literal["auto", "epsilon", "v_prediction"]
LongPrompts = Literal["chunks", "cut"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)
CONVERSIONS = {
    "safetensors": "one file for any CLIP-L loader",
    "diffusers": "a CLIPTextModel folder",
    "pt": "a .pt file for the published code, with its prefix text_encoder.",
    "lora": "the difference from the base as a LoRA, with kohya's key names",
    "checkpoint": "a copy of the base, a whole checkpoint, with this text encoder in it",
}


FileDtype = Literal["auto", "float16", "float32"]
PROMPT_COLUMN = (
    "column of prompts in a table, by its name or, without a header, by its number from 1 (empty: prompt, or the name "
    "that published sets use: sensitive prompt, adv_prompt, ...)"
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Validated):
    """The model a command loads, and where and how precisely it computes."""

    model: str = setting(
        "miniature",
        "'miniature', a diffusers folder (Stable Diffusion 1.x or XL), or a Stable Diffusion 1.x checkpoint file",
    )
    device: str = setting("", "cuda, mps or cpu (empty: the first available)")
    dtype: Dtype = setting("float32", "dtype of the frozen parts; trained weights stay in float32")
    memory: Literal["auto", "fast", "low"] = setting(
        "auto",
        "training memory: auto splits batches into the largest micro-batches that fit into the free memory of the GPU "
        "(same result up to rounding); fast uses whole batches; low takes one sample at a time with gradient "
        "checkpointing and offloading",
    )
    clip_skip: int = setting(
        0,
        "Stable Diffusion 1.x: layers of the text encoder to skip at the end, as in diffusers (1 is ComfyUI's CLIP "
        "Set Last Layer -2, which most anime models need)",
        0,
        11,
    )
    prediction_type: PredictionType = setting(
        "auto", "what the UNet predicts (auto: as the model states, otherwise epsilon)"
    )
    long_prompts: LongPrompts = setting(
        "chunks",
        "prompts of more than 75 tokens: chunks encodes 75 tokens at a time, as ComfyUI does; cut leaves out the rest, "
        "as diffusers and the published code do (mode official always cuts)",
    )


@dataclass(frozen=True, kw_only=True)
class RetainConfig(Validated):
    """The retained prompts, whose predictions must not change."""

    retain_set: Literal["auto", "coco", "imagenet", "miniature", "none"] = setting(
        "auto",
        "shipped retain set: 'a photo of a <class>' for COCO's or ImageNet's classes, or the prompts the miniature can "
        "draw (auto: miniature for that model, otherwise coco); prompts that name the concept are left out",
    )
    retain: str = setting(
        "",
        "file with your own retained prompts, added to the set: text with one prompt per line, or a table (.csv, .tsv) "
        "with a column of prompts",
    )
    prompt_column: str = setting("", PROMPT_COLUMN)
    retain_without: str = setting(
        "auto",
        "words or phrases, separated by commas: prompts that contain one are left out as well (auto: a list of what "
        "co-occurs with the concept, where there is one)",
    )


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Validated):
    """Files that a training run writes besides the encoder."""

    checkpoint_every: int = setting(50, "save a resumable state every N iterations", 1)
    sample_every: int = setting(
        50, "save sample images of the concept and of a retained prompt every N iterations (0: never)", 0
    )
    keep_every: int = setting(
        0,
        "also save the encoder every N iterations, with a quick measure of how much it has changed images of the "
        "concept and of retained prompts; the report names the best (0: only the last one)",
        0,
    )
    single_file: bool = setting(
        False, "also write the whole trained model as one Stable Diffusion 1.x checkpoint, checkpoint.safetensors"
    )
    encoder_dtype: FileDtype = setting(
        "auto",
        "dtype of the saved text encoder (auto: float16, as most files of CLIP, or float32 for a file under 64 MiB); "
        "training and resuming always use float32",
    )
    tracker: str = setting(
        "", "also log to a tracker through accelerate: tensorboard, wandb or another; separate several by commas"
    )
