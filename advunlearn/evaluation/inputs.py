"""A user's own inputs of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..config.evaluation import EvaluateConfig
from .image_metrics import ImageMetrics
from .metrics import Row
from .target_images import TargetImages
from .user_prompts import UserPrompt, describe_prompts


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """A user's own inputs of an evaluation; what is not given is made from the concept."""

    prompts: Sequence[str | UserPrompt] = ()  # prompts for the concept
    retained: Sequence[str | UserPrompt] = ()  # retained prompts; strings are "prompt | label" or a prompt
    synonyms: Sequence[str] = ()  # by default those known to the miniature or shipped with the library
    attack_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # by attack, over the budget
    image_metrics: ImageMetrics | None = None  # further metrics of the retained images
    target_images: TargetImages | None = None  # targets of the attacks instead of the original model's images

    def describe(self) -> Row:
        """Return the entries of the report."""
        row: Row = {}
        if self.image_metrics is not None:
            row["quality"] = self.image_metrics.settings()
        if self.prompts:
            row["own_prompts"] = describe_prompts(self.prompts)
        if self.retained:
            row["own_retained"] = describe_prompts(self.retained)
        if self.synonyms:
            row["own_synonyms"] = list(self.synonyms)
        if self.target_images is not None:
            row["own_images"] = self.target_images.describe()
        return row


def max_inserted_tokens(config: EvaluateConfig, inputs: EvaluationInputs) -> int:
    """Return the largest number of tokens that an attack of this evaluation inserts into a prompt by its settings."""
    given = [settings.get("tokens", 0) for settings in inputs.attack_settings.values()]
    return max([config.attack_tokens, *(tokens for tokens in given if isinstance(tokens, int))])
