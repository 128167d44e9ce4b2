"""The one source of every setting: default, range and help text.

Command-line flags, node widgets, tooltips and the metadata of saved files are made from these dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..errors import AdvUnlearnError
from .adversary import AttackConfig as AttackConfig
from .base import Validated, setting
from .base import choices as choices
from .evaluation import EvaluateConfig as EvaluateConfig
from .phrasing import SUBJECTS, article, joined
from .quirks import quirks_of, quirks_setting

Mode = Literal["advunlearn", "fast", "esd", "official", "esd_unet"]
TrainMethod = Literal["text_encoder", "full", "xattn", "noxattn", "selfattn", "notime"]
Trainable = Literal["layers", "attention", "mlp", "all"]
Encoders = Literal["both", "clip_l", "clip_g"]
FinalNorm = Literal["auto", "train", "freeze"]
Dtype = Literal["float32", "float16", "bfloat16"]
PARTS: tuple[str, ...] = get_args(Encoders)[1:]  # SDXL's encoders one by one
DTYPES: tuple[str, ...] = get_args(Dtype)
CONVERSIONS = {
    "safetensors": "one file for any loader of CLIP-L",
    "diffusers": "a CLIPTextModel folder",
    "lora": "the difference to --base as a LoRA, in kohya's names",
    "checkpoint": "a copy of the checkpoint --base with this text encoder in it",
}
PredictionType = Literal["auto", "epsilon", "v_prediction"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)


@dataclass(frozen=True, kw_only=True)
class ConceptConfig(Validated):
    """The concept to erase, or several, and the sentences that name them while training."""

    concept: str = setting("church", "the concept to erase, as a prompt would name it; several: one a line")
    kind: Literal["object", "style", "prompt"] = setting(
        "object", "what the concept is: an object in the picture, its style, or a prompt that is taken as it is"
    )
    negative_guidance: float = setting(1.0, "eta of eq. (3): how far the target moves away from the concept", 0, 20)
    schedule: Literal["mixed", "round_robin", "joined"] = setting(
        "mixed", "several concepts: mixed: each sample is of one drawn at random; round_robin: one in each iteration, "
        "in turn; joined: all in one prompt, a, b and c"
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.concept.strip():
            raise AdvUnlearnError("concept is empty; name what is to be forgotten, for example church")

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts, one for each line."""
        return tuple(line.strip() for line in self.concept.splitlines() if line.strip())

    @property
    def each(self) -> tuple[ConceptConfig, ...]:
        """The concepts one by one."""
        return tuple(replace(self, concept=name) for name in self.names)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The clean prompts of each concept; of all together where they are joined."""
        nouns = self.names if self.kind != "object" else tuple(map(article, self.names))
        each = (joined(nouns),) if self.schedule == "joined" else nouns
        if self.kind == "style":
            return tuple(tuple(f"{article(subject)}, {name} style" for subject in SUBJECTS) for name in each)
        return tuple((name,) for name in each)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The clean prompts that training erases and attacks; each sample is of one of them, drawn at random."""
        return tuple(prompt for group in self.groups for prompt in group)

    @property
    def anchors(self) -> tuple[str, ...]:
        """What each of `prompts` is to be drawn as: nothing in particular, or a style's subject without the style."""
        if self.kind == "style":
            return tuple(article(subject) for _ in self.groups for subject in SUBJECTS)
        return ("",) * len(self.prompts)

    def turn(self, number: int) -> range | None:
        """Return which of `prompts` have turn `number`, counted from 0; None where all have every turn."""
        if self.schedule != "round_robin":
            return None
        size = len(self.groups[0])
        first = number % len(self.groups) * size
        return range(first, first + size)


@dataclass(frozen=True, kw_only=True)
class BankConfig(Validated):
    """The bank of (x_t, eps_o) that the frozen model fills once and the run draws from."""

    trajectories: int = setting(96, "concept trajectories kept", 1, 100000)
    retain_trajectories: int = setting(192, "trajectories of retained prompts kept", 1, 100000)
    sampling_steps: int = setting(20, "DDIM steps of a trajectory", 1, 1000)
    guidance_scale: float = setting(3.0, "classifier-free guidance while sampling the bank", 0, 30)
    reuse: float = setting(40.0, "mean number of draws of a triple before its trajectory is sampled anew", 0.01, 1e9)
    dtype: Dtype = setting("float16", "storage of the bank")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Validated):
    """One unlearning run."""

    mode: Mode = setting(
        "advunlearn", "advunlearn; fast: one signed step; esd: no adversary, text encoder; official: the published "
        "code with its quirks, slow; esd_unet: ESD on the UNet's cross-attention, a baseline"
    )  # fmt: skip
    iterations: int = setting(100, "training iterations", 1, 1_000_000)
    warmup: int = setting(20, "first iterations on the clean prompt alone", 0, 1_000_000)
    train_method: TrainMethod = setting(
        "text_encoder", "the text encoder trains; or the UNet, to compare with: full, its cross-attention (xattn) or "
        "self-attention alone, all but time embedding and output (notime), and without cross-attention (noxattn)"
    )  # fmt: skip
    trainable: Trainable = setting(
        "layers", "what trains: layers and final norm (as published), their attention or mlp alone, or embeddings too"
    )
    final_norm: FinalNorm = setting("auto", "whether the final norm trains; auto: where whole layers do")
    encoders: Encoders = setting("both", "of Stable Diffusion XL's two text encoders, those that train")
    layers: int = setting(0, "train the first so many layers only; 0 for all of them", 0, 1000)
    lr: float = setting(2e-4, "learning rate of Adam", 0, 1)
    batch: int = setting(8, "concept samples per iteration", 1, 1024)
    clean_share: float = setting(0.25, "share of the concept samples kept on the clean prompt after warm-up", 0, 1)
    retain_weight: float = setting(2.0, "gamma of eq. (6): weight of the retain term; 0 turns it off", 0, 1000)
    retain_batch: int = setting(12, "retained samples per iteration, or per step of their own", 1, 1024)
    retain_by: Literal["loss", "step"] = setting(
        "loss", "the retain term is part of the loss, eq. (6), or has optimiser steps of its own after the erasing one"
    )
    retain_steps: int = setting(1, "steps of retain_by step in each iteration", 1, 1000)
    seed: int = setting(0, "seed of every random draw", 0, 2**63 - 1)
    quirks: str = quirks_setting()
    checkpointing: bool = setting(
        False, "gradient checkpointing: keep only what goes into the UNet's blocks, and compute the rest again in the "
        "backward pass; less memory, more time, the same weights"
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        quirks_of(self.mode, self.quirks)  # refuses what there is not
        if self.attacks and self.warmup >= self.iterations:
            raise AdvUnlearnError(
                f"warmup is {self.warmup} of {self.iterations} iterations, which leaves none to attack in; "
                "lower warmup, or use mode esd"
            )

    @property
    def unet_method(self) -> TrainMethod | None:
        """What trains of the UNet; None where the text encoder trains."""
        if self.train_method == "text_encoder":
            return "xattn" if self.mode == "esd_unet" else None
        return self.train_method

    @property
    def attacks(self) -> bool:
        """Whether this mode has an adversary."""
        return self.mode in ("advunlearn", "fast", "official")

    @property
    def retains(self) -> bool:
        """Whether this mode has a retain term; ESD, eq. (3) alone, has none."""
        return self.attacks and self.retain_weight > 0


@dataclass(frozen=True, kw_only=True)
class RunConfig(Validated):
    """What a training run reads, where it computes, and what it keeps on disk beside the encoder."""

    model: str = setting(
        "miniature",
        "'miniature', a diffusers folder of the kind of Stable Diffusion 1.x or XL, or a Stable Diffusion "
        "1.x checkpoint in one file",
    )
    device: str = setting("", "cuda, mps or cpu; empty: the first that is there")
    dtype: Dtype = setting("float32", "arithmetic of the frozen parts; what trains keeps float32 weights")
    prediction_type: PredictionType = setting(
        "auto", "what the UNet predicts; auto is what the model says, else epsilon"
    )
    retain: str = setting(
        "", "file of retained prompts: text, one a line, or .csv with a column prompt, or else its first; empty: a set "
        "that is shipped"
    )  # fmt: skip
    retain_set: Literal["auto", "coco", "imagenet", "miniature"] = setting(
        "auto", "the shipped set: photos of COCO's or ImageNet's classes without those that name the concept, or what "
        "the miniature can draw; auto is miniature for that model, else coco"
    )  # fmt: skip
    retain_without: str = setting(
        "auto", "words or phrases, separated by commas, whose prompts are left out too; auto is, for concepts that "
        "have one, a list of what is seen together with them, and nothing of a file or of the miniature's set"
    )  # fmt: skip
    checkpoint_every: int = setting(50, "iterations between two states", 1)
    sample_every: int = setting(
        50, "iterations between two sample pictures, of the concept and of a retained prompt; 0 for none", 0
    )
    single_file: bool = setting(
        False, "write the whole model too, with what was trained in it, as one Stable Diffusion 1.x checkpoint, "
        "checkpoint.safetensors"
    )  # fmt: skip
    tracker: str = setting(
        "", "also tell a tracker, through accelerate: tensorboard, wandb or another that it knows; several: commas"
    )
