"""The scope of a run: what is erased, what is retained, and what is left out of the retained prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config.concept import ConceptConfig
from ..config.io import LongPrompts
from ..models.prompt_tokens import describe_long_prompts, find_cut_prompts, fit_tokenizer
from ..models.tokenizer import Tokenizer
from .retain import list_left_out, make_retain_prompts

SHOWN_EXAMPLES = 6  # names or prompts that the description shows


@dataclass(frozen=True)
class Scope:
    """What a run erases and retains; users see it before the run starts."""

    concept: ConceptConfig
    retained: list[str]
    left_out: list[str]  # of the retain set and the user's own prompts
    cut: dict[str, int]  # retained prompts whose end the text encoder does not read, with their numbers of tokens
    long: str  # a note about retained prompts of more tokens than it reads at once; "" if there are none

    def to_dict(self) -> dict[str, object]:
        """Return the entries of the run's result."""
        return {
            "erased": list(self.concept.names),
            "erased_prompts": list(self.concept.prompts),
            "retained_prompts": len(self.retained),
            "left_out": self.left_out,
            "cut_prompts": self.cut,
        }

    def describe(self) -> str:
        """Return the lines that are printed before a run."""
        names, kind = self.concept.names, self.concept.kind
        lines = [
            f"erases {len(names)} {kind}{'s' * (len(names) > 1)}: {quote_some(names)}; "
            f"trained prompts: {quote_some(self.concept.prompts)}",
            f"retains {len(self.retained)} prompts; {len(self.left_out)} left out, because they name or show what is "
            f"erased{': ' * bool(self.left_out)}{quote_some(self.left_out)}",
        ]
        return "\n".join([*lines, *filter(None, [self.long])])


def make_scope(
    concept: ConceptConfig,
    retain_set: str,
    own: Sequence[str],
    left_out: Sequence[str] | None,
    tokenizer: Tokenizer,
    long_prompts: LongPrompts = "chunks",
) -> Scope:
    """Return the scope of a run.

    The arguments are those of `make_retain_prompts`, the model's tokenizer, and how the run encodes long prompts.
    """
    retained = make_retain_prompts(concept, retain_set, own, left_out)
    fitted = tokenizer if long_prompts == "cut" else fit_tokenizer(tokenizer, retained)
    omitted = list_left_out(concept, retain_set, own, left_out)
    cut = find_cut_prompts(fitted, retained)
    return Scope(concept, retained, omitted, cut, describe_long_prompts(fitted, retained))


def quote_some(texts: Sequence[str]) -> str:
    """Return the first texts in quotes, and how many more there are."""
    more = f" and {len(texts) - SHOWN_EXAMPLES} more" * (len(texts) > SHOWN_EXAMPLES)
    return ", ".join(map(repr, texts[:SHOWN_EXAMPLES])) + more
