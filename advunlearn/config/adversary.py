"""The settings of the adversary inside training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import AdvUnlearnError
from .base import Validated, setting

Position = Literal["prefix", "suffix", "middle", "interleaved", "per_k", "replace", "add"]
Start = Literal["token", "random", "latest", "concept", "text"]


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Validated):
    """The adversary inside training: adversarial token embeddings in the prompt, eq. (4)."""

    steps: int = setting(8, "attack steps per iteration (mode fast takes one)", 1, 1000)
    step_size: float = setting(0.5, "step size, in `unit`", 0, 100)
    update: Literal["sign", "adam"] = setting("sign", "signed gradient steps, or Adam")
    tokens: int = setting(5, "number of adversarial tokens; position add has as many as the concept", 1, 20)
    position: Position = setting(
        "prefix", "where the adversarial tokens stand: before, behind, amid or spread among the concept's tokens, one "
        "before every per_k of them, in their place, or added to their embeddings"
    )  # fmt: skip
    per_k: int = setting(3, "position per_k: the concept's tokens between two adversarial ones", 1, 75)
    space: Literal["embedding", "conditioning"] = setting(
        "embedding", "what is attacked: token embeddings, or the encoder's output (position add, at every place)"
    )
    start: Start = setting(
        "token", "start from rows of the embedding table, from noise of its deviation, from the last attack, from the "
        "concept's own embeddings, or from start_text; a text of fewer tokens is repeated"
    )  # fmt: skip
    start_text: str = setting("", "the text of start text; of no more tokens than the attack has")
    restarts: int = setting(4, "attacked prompts found side by side in one batch", 1, 64)
    every: int = setting(1, "iterations that an attack's finds are trained on before the next attack", 1, 1_000_000)
    redraw: Literal["step", "iteration"] = setting(
        "step", "draw new latents and timesteps in every attack step, or keep those of the iteration"
    )
    radius: float = setting(0.0, "ball around the start, in `unit`; 0 for none", 0, 1000)
    norm: Literal["linf", "l2"] = setting(
        "linf", "the ball bounds each coordinate, or the length of all adversarial embeddings of a prompt together"
    )
    words: int = setting(
        0, "a second adversary, concept inversion: so many learned words for each concept are kept, stand where its "
        "name stood, and are trained on beside the first's finds; nothing bounds them; 0 for none", 0, 64
    )  # fmt: skip
    word_steps: int = setting(4, "Adam steps of the words in each attack, of step_size", 1, 1000)
    word_share: float = setting(0.5, "share of the attacked samples that have a word, not the first's find", 0, 1)
    word_renewal: int = setting(10, "attacks after which the oldest word starts anew from a random token; 0: never", 0)
    unit: Literal["sigma", "absolute"] = setting(
        "sigma", "unit of step_size and radius: the deviation of what is attacked (the embedding table, or the "
        "concept's conditioning), or none, as published"
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.words and not self.word_share:
            raise AdvUnlearnError(
                "word_share is 0, so that no sample would have one of the words; raise it, or set words to 0"
            )
        if self.start == "text" and not self.start_text.strip():
            raise AdvUnlearnError("start is text but start_text is empty; give the text, or another start")
        if self.space == "conditioning":
            if self.position != "add":
                raise AdvUnlearnError(
                    f"position is {self.position}, but the encoder's output can only be added to; set position to add, "
                    "or space to embedding"
                )
            if self.start in ("token", "text"):
                raise AdvUnlearnError(
                    f"start is {self.start}, but the encoder's output is no token; set start to concept, random or "
                    "latest, or space to embedding"
                )

    @property
    def inserted(self) -> int:
        """How many tokens longer the attack makes a prompt."""
        return 0 if self.position in ("replace", "add") else self.tokens

    @property
    def all_steps(self) -> int:
        """How many steps both adversaries take in an attack."""
        return self.steps + self.word_steps * bool(self.words)

    def in_mode(self, mode: str) -> AttackConfig:
        """Return the settings as a mode has them: fast is one signed step."""
        return replace(self, steps=1, update="sign") if mode == "fast" else self
