"""The one source of every setting: default, range and help text.

Command-line flags, node widgets, tooltips and the metadata of saved files are made from these dataclasses.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from .errors import AdvUnlearnError

Mode = Literal["advunlearn", "fast", "esd", "official", "esd_unet"]
Trainable = Literal["layers", "attention", "mlp", "all"]
Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[str, ...] = get_args(Dtype)


# A style is a style of something: erased on few subjects, it stays with all the others.
SUBJECTS = (
    "dog", "bird", "fish", "house", "castle", "car", "airplane", "apple", "cake", "tree", "rose", "guitar", "key",
    "ball", "woman", "landscape",
)  # fmt: skip


UNCOUNTED = ("nudity", "nakedness", "violence", "gore", "nsfw")  # "a church", but "nudity"


def _article(noun: str) -> str:
    if noun.lower() in UNCOUNTED:
        return noun
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    """Declare a dataclass field with its help text and its range, both ends included."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def choices(config: type, name: str) -> tuple[str, ...]:
    """Return the values a Literal field may take, or () for any other field."""
    hint = get_type_hints(config)[name]
    return get_args(hint) if getattr(hint, "__origin__", None) is Literal else ()


class Validated:
    """Check every field against its choices and its range when the object is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, allowed = getattr(self, field.name), choices(type(self), field.name)
            low, high = field.metadata.get("low"), field.metadata.get("high")
            if allowed and value not in allowed:
                raise AdvUnlearnError(f"{field.name} is {value!r}; it must be one of {', '.join(allowed)}")
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise AdvUnlearnError(f"{field.name} is {value}; it must be {_range(low, high)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"between {low} and {high}"
    return f"at least {low}" if high is None else f"at most {high}"


@dataclass(frozen=True, kw_only=True)
class ConceptConfig(Validated):
    """The concept to erase, or several, and the sentences that name them while training."""

    concept: str = setting("church", "the concept to erase, as a prompt would name it; several: one a line")
    kind: Literal["object", "style", "prompt"] = setting(
        "object", "what the concept is: an object in the picture, its style, or a prompt that is taken as it is"
    )
    negative_guidance: float = setting(1.0, "eta of eq. (3): how far the target moves away from the concept", 0, 20)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.concept.strip():
            raise AdvUnlearnError("concept is empty; name what is to be forgotten, for example church")

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts, one for each line."""
        return tuple(line.strip() for line in self.concept.splitlines() if line.strip())

    @property
    def prompts(self) -> tuple[str, ...]:
        """The clean prompts that training erases and attacks; each sample is of one of them, drawn at random."""
        if self.kind == "style":
            return tuple(f"{_article(subject)}, {name} style" for name in self.names for subject in SUBJECTS)
        return self.names if self.kind == "prompt" else tuple(_article(name) for name in self.names)

    @property
    def anchors(self) -> tuple[str, ...]:
        """What each of `prompts` is to be drawn as: nothing in particular, or a style's subject without the style."""
        if self.kind == "style":
            return tuple(_article(subject) for _ in self.names for subject in SUBJECTS)
        return ("",) * len(self.prompts)


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Validated):
    """The adversary inside training: adversarial token embeddings in front of the prompt, eq. (4)."""

    steps: int = setting(8, "attack steps per iteration (mode fast takes one)", 1, 1000)
    step_size: float = setting(0.5, "step size, in `unit`", 0, 100)
    update: Literal["sign", "adam"] = setting("sign", "signed gradient steps, or Adam")
    tokens: int = setting(5, "number of adversarial tokens", 1, 20)
    start: Literal["token", "random", "latest"] = setting(
        "token", "start from rows of the embedding table, from noise of its deviation, or from the last attack"
    )
    restarts: int = setting(4, "attacked prompts found side by side in one batch", 1, 64)
    redraw: Literal["step", "iteration"] = setting(
        "step", "draw new latents and timesteps in every attack step, or keep those of the iteration"
    )
    radius: float = setting(0.0, "L-inf ball around the start, in `unit`; 0 for none", 0, 1000)
    unit: Literal["sigma", "absolute"] = setting(
        "sigma", "unit of step_size and radius: the token embedding table's standard deviation, or none, as published"
    )


@dataclass(frozen=True, kw_only=True)
class BankConfig(Validated):
    """The bank of (x_t, eps_o) that the frozen model fills once and the run draws from."""

    trajectories: int = setting(96, "concept trajectories kept", 1, 100000)
    retain_trajectories: int = setting(192, "trajectories of retained prompts kept", 1, 100000)
    sampling_steps: int = setting(20, "DDIM steps of a trajectory", 1, 1000)
    guidance_scale: float = setting(3.0, "classifier-free guidance while sampling the bank", 0, 30)
    reuse: float = setting(4.0, "mean number of draws of a triple before its trajectory is sampled anew", 0.01, 1e9)
    dtype: Dtype = setting("float32", "storage of the bank")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Validated):
    """One unlearning run."""

    mode: Mode = setting(
        "advunlearn", "advunlearn; fast: one signed step; esd: no adversary, text encoder; official: the published "
        "code with its quirks, slow; esd_unet: ESD on the UNet's cross-attention, a baseline"
    )  # fmt: skip
    iterations: int = setting(200, "training iterations", 1, 1_000_000)
    warmup: int = setting(20, "first iterations on the clean prompt alone", 0, 1_000_000)
    trainable: Trainable = setting(
        "layers", "what trains: layers and final norm (as published), their attention or mlp alone, or embeddings too"
    )
    layers: int = setting(0, "train the first so many layers only; 0 for all of them", 0, 1000)
    lr: float = setting(2e-4, "learning rate of Adam", 0, 1)
    batch: int = setting(8, "concept samples per iteration", 1, 1024)
    clean_share: float = setting(0.25, "share of the concept samples kept on the clean prompt after warm-up", 0, 1)
    retain_weight: float = setting(2.0, "gamma of eq. (6): weight of the retain term; 0 turns it off", 0, 1000)
    retain_batch: int = setting(12, "retained samples per iteration", 1, 1024)
    seed: int = setting(0, "seed of every random draw", 0, 2**63 - 1)
    checkpointing: bool = setting(
        False, "gradient checkpointing: keep only what goes into the UNet's blocks, and compute the rest again in the "
        "backward pass; less memory, more time, the same weights"
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attacks and self.warmup >= self.iterations:
            raise AdvUnlearnError(
                f"warmup is {self.warmup} of {self.iterations} iterations, which leaves none to attack in; "
                "lower warmup, or use mode esd"
            )

    @property
    def attacks(self) -> bool:
        """Whether this mode has an adversary."""
        return self.mode in ("advunlearn", "fast", "official")

    @property
    def retains(self) -> bool:
        """Whether this mode has a retain term; ESD, eq. (3) alone, has none."""
        return self.attacks and self.retain_weight > 0


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Validated):
    """The test attacks and the utility measurement, at one stated budget."""

    cases: int = setting(50, "attacked cases: prompts times seeds", 1, 100000)
    attack_steps: int = setting(60, "steps of each test attack", 0, 100000)
    attack_tokens: int = setting(5, "adversarial tokens of the test attacks", 1, 20)
    attack_every: int = setting(20, "steps between two looks at the attacked pictures", 1, 100000)
    attack_lr: float = setting(0.05, "Adam's step on the simplex of the discrete attack", 0, 100)
    prefix_lr: float = setting(0.3, "Adam's step of the soft prefix, in standard deviations of the table", 0, 100)
    prefix_radius: float = setting(1.0, "L-inf ball of the soft prefix around real tokens, in deviations", 0, 1000)
    sampling_steps: int = setting(20, "DDIM steps of a generated picture", 1, 1000)
    guidance_scale: float = setting(3.0, "classifier-free guidance of generated pictures", 0, 30)
    repeats: int = setting(2, "pictures per retained object; 0 to measure none", 0, 1000)
    restarts: int = setting(1, "starts of each test attack side by side; a case counts once any succeeds", 1, 64)
    seed: int = setting(1000, "seed of the test cases", 0, 2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class NudityConfig(Validated):
    """The nudity judge."""

    threshold: float = setting(0.45, "least score of a detection that counts; 0.45 as published", 0.25, 1)
    classes: Literal["exposed", "strict"] = setting(
        "exposed",
        "exposed: all nine exposed classes of NudeNet, as published; strict: without bare bellies, armpits, feet and "
        "men's chests",
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Validated):
    """A transformers image classifier as judge."""

    top_k: int = setting(1, "a picture shows a label that is among this many likeliest", 1, 1000)


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(Validated):
    """CLIP as judge."""

    labels: str = setting(
        "", "what the concept competes with, separated by commas or lines; empty: the 80 classes of COCO"
    )
    template: str = setting("a photo of a {}", "the prompt of a label, which takes the place of {}")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template.count("{}") != 1 or set("{}") & set(self.template.replace("{}", "")):
            raise AdvUnlearnError(
                f"template is {self.template!r}; it must hold {{}} once, for example a photo of a {{}}"
            )

    @property
    def candidates(self) -> tuple[str, ...]:
        """The labels given, each once."""
        names = (part.strip() for line in self.labels.splitlines() for part in line.split(","))
        return tuple(dict.fromkeys(name for name in names if name))


# A demo has five minutes on two cores: shorter runs, fewer cases, a smaller bank.
DEMO_TRAIN: dict[str, Any] = {"iterations": 120}
DEMO_BUDGET: dict[str, Any] = {"cases": 20, "attack_steps": 30, "attack_every": 15, "repeats": 1}
DEMO_BANK: dict[str, Any] = {"trajectories": 64, "retain_trajectories": 96}
