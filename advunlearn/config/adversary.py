"""The settings of the adversaries inside training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import AdvUnlearnError
from .base import Validated, setting

Position = Literal["prefix", "suffix", "middle", "interleaved", "per_k", "replace", "add"]
Start = Literal["token", "random", "latest", "concept", "text"]


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig(Validated):
    """The adversaries inside training: adversarial token embeddings, eq. (4), and concept inversion."""

    steps: int = setting(8, "attack steps per attack (mode fast takes one)", 1, 1000)
    step_size: float = setting(0.5, "step size, in `unit`", 0, 100)
    update: Literal["sign", "adam"] = setting("sign", "signed gradient steps, or Adam")
    tokens: int = setting(
        5, "number of adversarial tokens (position add: as many as the concept has, whatever is set here)", 1, 20
    )
    position: Position = setting(
        "prefix",
        "place of the adversarial tokens: prefix, suffix or middle of the prompt, interleaved with its tokens, per_k "
        "(one before every per_k tokens), replace (instead of the prompt) or add (added to its embeddings)",
    )
    per_k: int = setting(3, "position per_k: number of prompt tokens between two adversarial ones", 1, 75)
    space: Literal["embedding", "conditioning"] = setting(
        "embedding", "what is attacked: token embeddings, or the encoder's output (position add only, all positions)"
    )
    start: Start = setting(
        "token",
        "starting point: random rows of the embedding table (token), noise with its standard deviation (random), "
        "the last attack's result (latest), the concept's own embeddings (concept), or start_text (text)",
    )
    start_text: str = setting("", "start text: the text to start from, with at most as many tokens as the attack")
    restarts: int = setting(4, "number of parallel attacks, each from its own starting point", 1, 64)
    attack_interval: int = setting(
        1, "run a new attack every N iterations and reuse its result in between", 1, 1_000_000
    )
    resample: Literal["step", "iteration"] = setting(
        "step", "draw new latents and timesteps for every attack step, or once per iteration"
    )
    radius: float = setting(0.0, "radius of the ball around the starting point, in `unit` (0: unbounded)", 0, 1000)
    norm: Literal["linf", "l2"] = setting(
        "linf", "norm of the ball: linf bounds each coordinate, l2 the norm over all adversarial embeddings of a prompt"
    )
    inversion_tokens: int = setting(
        0,
        "second adversary, concept inversion: number of learned tokens per concept, each in place of its name, "
        "unbounded (0: off)",
        0,
        64,
    )
    inversion_steps: int = setting(
        4, "Adam steps per attack for the inverted tokens, with step size step_size", 1, 1000
    )
    inversion_share: float = setting(
        0.5, "fraction of the attacked samples that use an inverted token instead of the adversarial tokens", 0, 1
    )
    inversion_restart_interval: int = setting(
        10, "restart the oldest inverted token from a random one every N attacks (0: never)", 0
    )
    unit: Literal["sigma", "absolute"] = setting(
        "sigma",
        "unit of step_size and radius: the standard deviation of what is attacked (embedding table, or the concept's "
        "conditioning), or absolute values, as published",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inversion_tokens and not self.inversion_share:
            raise AdvUnlearnError(
                "inversion_share is 0, so no sample would use an inverted token; raise it, or set inversion_tokens to 0"
            )
        if self.start == "text" and not self.start_text.strip():
            raise AdvUnlearnError("start is text but start_text is empty; give a text, or another start")
        if self.space == "conditioning":
            if self.position != "add":
                raise AdvUnlearnError(
                    f"position is {self.position}, but the encoder's output can only be added to; set position to add, "
                    "or space to embedding"
                )
            if self.start in ("token", "text"):
                raise AdvUnlearnError(
                    f"start is {self.start}, but the encoder's output has no tokens; set start to concept, random or "
                    "latest, or space to embedding"
                )

    @property
    def inserted(self) -> int:
        """Number of tokens that the attack adds to the length of a prompt."""
        return 0 if self.position in ("replace", "add") else self.tokens

    @property
    def all_steps(self) -> int:
        """Number of steps that all adversaries together take in one attack."""
        return self.steps + self.inversion_steps * bool(self.inversion_tokens)

    def in_mode(self, mode: str) -> AdversaryConfig:
        """Return the settings that a training mode uses: fast is one signed step, eq. (7)."""
        return replace(self, steps=1, update="sign") if mode == "fast" else self
