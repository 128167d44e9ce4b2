"""Concept inversion, CCE (Pham et al., arXiv 2308.01508): textual inversion (arXiv 2208.01618) on the erased model.

A new word is learned from pictures of the concept by the denoising loss, and stands where the concept's name stood.
One word serves all cases, so it can be given away as an embedding file; nothing bounds it.
Published learns in ImageNet's templates ("a photo of a {}", "a painting in the style of {}"); here each picture has its
own prompt with the concept's name replaced, and the first of those templates where the name does not occur.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.attacks import CCEConfig
from ..models.denoiser import add_noise
from ..models.text_encoder import embedding_table
from .base import AttackOutput, AttackTargets
from .prompt_slots import PromptSlots, content_tokens, replacement_slots
from .search_spaces import SharedSearch
from .token_attacks import DenoisingAttack


class CCE(DenoisingAttack[CCEConfig]):
    """A new word for the concept."""

    name, config_class, discrete = "cce", CCEConfig, False
    needs, restarts = ("pictures", "concept"), False
    search: SharedSearch

    def start(self) -> None:
        """Start from a word; put places where the concept's name stands."""
        scene, config = self.scene, self.config
        assert scene.concept is not None  # `needs`
        style = scene.concept.kind == "style"
        self.examples = scene.examples or scene.target
        self.case_slots, self.slots = (self.places(t) for t in (scene.target, self.examples))
        word = config.start.strip() or ("art" if style else "object")
        rows = embedding_table(scene.encoder).detach()[scene.tokenizer(word).input_ids[1:-1]]
        self.search = SharedSearch(rows.mean(0).expand(1, config.tokens, -1), config.batch)
        self.optimizer = torch.optim.AdamW([self.search.parameter], lr=config.lr, weight_decay=config.weight_decay)

    def places(self, target: AttackTargets) -> PromptSlots:
        """Return prompts with places where the concept's name stands."""
        concept, tokenizer = self.scene.concept, self.scene.tokenizer
        assert concept is not None  # `needs`
        names = [tokenizer(name).input_ids[1:-1] for name in concept.names]
        template = "a painting in the style of" if concept.kind == "style" else "a photo of a"
        rows = content_tokens(target.ids, target.eos)
        return replacement_slots(
            rows, names, tokenizer(template).input_ids[1:-1], self.config.tokens, tokenizer, target.ids.device
        )

    def around(self, row: int) -> tuple[str, str] | None:
        """Return the text of a case's prompt before and after the new word."""
        return self.case_slots.surrounding_text(row, self.scene.tokenizer)

    def draw(self) -> tuple[Tensor, ...]:
        """Draw a batch of pictures, and noise them: which pictures, x_t, t, noise."""
        x_0, denoiser = self.examples.x_0, self.scene.denoiser
        which = torch.randint(len(x_0), (self.config.batch,), generator=self.generator)
        t = torch.randint(len(denoiser.alphas_cumprod), (len(which),), generator=self.generator)
        noise = torch.randn(len(which), *x_0.shape[1:], generator=self.generator).to(x_0.device)
        x_t = add_noise(x_0[which.to(x_0.device)], noise, t.to(x_0.device), denoiser.alphas_cumprod)
        return which.to(x_0.device), x_t, t.to(x_0.device), noise

    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return the denoising loss of the pictures drawn."""
        which, *noised = drawn
        return super().loss(embeddings, which, *noised)

    def found(self) -> AttackOutput:
        """Return the cases' prompts with the new word in place of the name."""
        slots = self.case_slots
        word = self.search.found().expand(len(slots), -1, -1)
        with torch.no_grad():
            return AttackOutput(slots.encode(self.scene.encoder, word), word)
