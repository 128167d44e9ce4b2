"""PEZ, "Hard Prompts Made Easy" (Wen et al., arXiv 2302.03668), as prompt distillation.

The search is for a hard prompt whose feature, the encoder's output at the end of text, has the direction of the
original encoder's feature of the concept's prompt. It uses text encoders only: no denoiser and no image.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..config.attacks import PEZConfig
from .features import choose_encoder, cosine_distance, encode_end_of_text, encode_target_features
from .gradient_attack import HardPromptAttack
from .prompt_slots import PromptSlots, free_slots


class PEZ(HardPromptAttack):
    """A prompt of hard tokens whose feature is the original one of the concept's prompt."""

    name = "pez"
    needs = ("original encoder", "one encoder")
    config_class = PEZConfig
    config: PEZConfig
    has_draws = False

    def searched_encoder(self) -> nn.Module:
        """Return the attacked encoder, or the original one."""
        return choose_encoder(self.context, self.config.through)

    def make_slots(self) -> PromptSlots:
        """Return free prompts; set the target features."""
        self.target_features = encode_target_features(self.context)
        return free_slots(self.context.targets.ids, self.config.tokens, self.context.tokenizer)

    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return 1 - cos(f(c'), f_o(c)), (n,)."""
        slots = self.slots.rows(rows)
        features = encode_end_of_text(self.searched_encoder(), slots, embeddings, self.context.targets.eos)
        return cosine_distance(features, self.target_features[rows])
