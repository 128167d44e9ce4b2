"""The settings of a training run, and the run configuration that bundles them.

Command-line flags, node widgets, tooltips and the metadata of saved files are all made from these dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from ..errors import AdvUnlearnError
from ..files import JsonDict
from .adversary import AdversaryConfig
from .base import Dtype, Validated, setting
from .concept import ConceptConfig
from .quirks import parse_quirks, quirks_setting
from .renamed import with_current_names

Mode = Literal["advunlearn", "fast", "esd", "official", "esd_unet"]
TrainMethod = Literal["text_encoder", "full", "xattn", "noxattn", "selfattn", "notime"]
Trainable = Literal["layers", "attention", "mlp", "all"]
Encoders = Literal["both", "clip_l", "clip_g"]
FinalNorm = Literal["auto", "train", "freeze"]
ENCODER_NAMES: tuple[str, ...] = get_args(Encoders)[1:]  # Stable Diffusion XL's text encoders


@dataclass(frozen=True, kw_only=True)
class BankConfig(Validated):
    """The trajectory bank: samples of the frozen model, taken once and drawn many times."""

    trajectories: int = setting(96, "number of concept trajectories in the bank", 1, 100000)
    retain_trajectories: int = setting(192, "number of retained prompts' trajectories in the bank", 1, 100000)
    sampling_steps: int = setting(20, "DDIM steps per trajectory", 1, 1000)
    guidance_scale: float = setting(3.0, "classifier-free guidance scale for sampling the bank", 0, 30)
    draws_per_sample: float = setting(
        40.0, "mean number of draws of each sample before its trajectory is replaced by a new one", 0.01, 1e9
    )
    dtype: Dtype = setting("float16", "storage dtype of the bank")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Validated):
    """The optimisation: mode, length, what trains, loss weights and batch sizes."""

    mode: Mode = setting(
        "advunlearn",
        "advunlearn: adversarial training, eq. (6); fast: one signed attack step (Fast AT); esd: no attack and no "
        "retain term; official: the published code with its quirks, slow; esd_unet: ESD on the UNet's cross-attention",
    )
    iterations: int = setting(100, "number of training iterations", 1, 1_000_000)
    warmup: int = setting(20, "number of initial iterations on the clean prompt only", 0, 1_000_000)
    train_method: TrainMethod = setting(
        "text_encoder",
        "text_encoder, or for comparison a part of the UNet: full, xattn (cross-attention), selfattn, notime (all but "
        "time embedding and output) or noxattn (notime without cross-attention)",
    )
    trainable: Trainable = setting(
        "layers",
        "trained weights of the text encoder: layers (and the final norm, as published), their attention or mlp only, "
        "or all (embeddings too)",
    )
    final_norm: FinalNorm = setting("auto", "train or freeze the final norm (auto: train it with whole layers)")
    encoders: Encoders = setting("both", "Stable Diffusion XL: the text encoders to train")
    num_layers: int = setting(0, "train only the first N layers (0: all)", 0, 1000)
    lr: float = setting(2e-4, "learning rate of Adam", 0, 1)
    batch: int = setting(8, "concept samples per iteration", 1, 1024)
    clean_share: float = setting(0.25, "fraction of the concept samples with the clean prompt after warm-up", 0, 1)
    retain_weight: float = setting(2.0, "gamma of eq. (6): weight of the retain term (0: no retain term)", 0, 1000)
    retain_batch: int = setting(12, "retained samples per iteration, or per retain step", 1, 1024)
    retain_mode: Literal["loss", "step"] = setting(
        "loss", "loss: the retain term is added to the loss, eq. (6); step: it gets optimiser steps of its own"
    )
    retain_steps: int = setting(1, "retain_mode step: retain steps per iteration", 1, 1000)
    seed: int = setting(0, "seed of all random draws", 0, 2**63 - 1)
    quirks: str = quirks_setting()
    micro_batch: int = setting(
        0,
        "samples in one pass of the UNet with gradients (0: the whole batch): a batch in parts needs less memory and "
        "has the same gradient up to rounding",
        0,
        1024,
    )
    checkpointing: bool = setting(
        False,
        "gradient checkpointing: store only the inputs of the UNet's blocks and recompute the rest in the backward "
        "pass; less memory, more time, same weights",
    )
    offload: bool = setting(
        False,
        "keep in main memory what the GPU does not need at the moment: Adam's moments, the last good weights, "
        "the original text encoder and the autoencoder; less GPU memory, a little more time, same weights",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_quirks(self.mode, self.quirks)  # raises for an unknown name
        if self.attacks and self.warmup >= self.iterations:
            raise AdvUnlearnError(
                f"warmup is {self.warmup} of {self.iterations} iterations, so none is left for the attack; "
                "lower warmup, or use mode esd"
            )

    @property
    def unet_method(self) -> TrainMethod | None:
        """The part of the UNet that trains; None if the text encoder trains."""
        if self.train_method == "text_encoder":
            return "xattn" if self.mode == "esd_unet" else None
        return self.train_method

    @property
    def attacks(self) -> bool:
        """Whether this mode has an adversary."""
        return self.mode in ("advunlearn", "fast", "official")

    @property
    def retains(self) -> bool:
        """Whether this run has a retain term; ESD, eq. (3) alone, has none."""
        return self.attacks and self.retain_weight > 0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings that determine a training run; a saved encoder carries them as its recipe."""

    concept: ConceptConfig = field(default_factory=ConceptConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    attack: AdversaryConfig = field(default_factory=AdversaryConfig)
    bank: BankConfig = field(default_factory=BankConfig)

    def to_dict(self) -> dict[str, JsonDict]:
        """Return the settings as plain values, one section per class."""
        return {name: getattr(self, name).to_dict() for name in SECTIONS}

    @classmethod
    def from_dict(cls, values: Mapping[str, JsonDict]) -> RunConfig:
        """Make a run configuration from what `to_dict` returned, in this version or an earlier one.

        Raises AdvUnlearnError for an unknown setting or a value out of range.
        """
        sections = with_current_names(values)
        return cls(
            concept=ConceptConfig.from_dict(sections.get("concept", {})),
            train=TrainConfig.from_dict(sections.get("train", {})),
            attack=AdversaryConfig.from_dict(sections.get("attack", {})),
            bank=BankConfig.from_dict(sections.get("bank", {})),
        )

    def replace(self, **changes: JsonDict) -> RunConfig:
        """Return a copy with some settings changed, by section: `run.replace(train={"lr": 1e-5})`."""
        return replace(self, **{name: replace(getattr(self, name), **values) for name, values in changes.items()})

    @property
    def samples_in_one_pass(self) -> int:
        """Number of samples in the largest pass of the UNet with gradients, if no micro-batch is set."""
        train, attack = self.train, self.attack
        joint = train.retains and train.retain_mode == "loss"
        sizes = [train.batch + train.retain_batch * joint]
        if train.retains:
            sizes.append(train.retain_batch)
        if train.attacks:
            sizes += [attack.restarts, attack.inversion_tokens]
        return max(sizes)


SECTIONS: dict[str, type[Validated]] = {
    "concept": ConceptConfig,
    "train": TrainConfig,
    "attack": AdversaryConfig,
    "bank": BankConfig,
}
