"""Concept inversion, CCE (Pham et al., arXiv 2308.01508): textual inversion (arXiv 2208.01618) on the erased model.

A new word is learned from images of the concept by the denoising loss, and replaces the concept's name. All cases share
one unbounded word, which can be published as an embedding file. The paper trains with ImageNet's templates ("a photo of
a {}", "a painting in the style of {}"); here each image has its own prompt with the concept's name replaced, or the
first of those templates if the name does not occur.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.attacks import CCEConfig
from ..models.denoiser import add_noise
from ..models.text_encoder import embedding_table
from .base import AttackOutput, AttackTargets
from .gradient_attack import DenoisingAttack, draw_timesteps
from .prompt_slots import PromptSlots, content_tokens, replacement_slots
from .search_spaces import SharedEmbedding


class CCE(DenoisingAttack):
    """A new word for the concept."""

    name = "cce"
    needs = ("target images", "concept")
    discrete = False
    restarts = False
    config_class = CCEConfig
    config: CCEConfig
    search: SharedEmbedding

    def start(self) -> None:
        """Start from a real word."""
        context = self.context
        config = self.config
        assert context.concept is not None  # see `needs`
        self.images = context.concept_images or context.targets
        self.case_slots = self.make_slots(context.targets)
        self.slots = self.make_slots(self.images)
        word = config.start.strip() or ("art" if context.concept.kind == "style" else "object")
        rows = embedding_table(context.encoder).detach()[context.tokenizer(word).input_ids[1:-1]]
        self.search = SharedEmbedding(rows.mean(0).expand(1, config.tokens, -1), config.batch)
        self.optimizer = torch.optim.AdamW([self.search.parameter], lr=config.lr, weight_decay=config.weight_decay)

    def make_slots(self, targets: AttackTargets) -> PromptSlots:
        """Return the targets' prompts with slots instead of the concept's name."""
        concept = self.context.concept
        tokenizer = self.context.tokenizer
        assert concept is not None  # see `needs`
        names = [tokenizer(name).input_ids[1:-1] for name in concept.names]
        template = tokenizer("a painting in the style of" if concept.kind == "style" else "a photo of a")
        prompts = content_tokens(targets.ids, tokenizer)
        device = targets.ids.device
        return replacement_slots(prompts, names, template.input_ids[1:-1], self.config.tokens, tokenizer, device)

    def surrounding_text(self, row: int) -> tuple[str, str] | None:
        """Return the text of a case's prompt before and after the new word."""
        return self.case_slots.surrounding_text(row, self.context.tokenizer)

    def draw(self, generator: torch.Generator, level: float | None = None) -> tuple[Tensor, ...]:
        """Draw a batch of noised images: their indices, x_t, t, noise."""
        x_0 = self.images.x_0
        alphas = self.context.denoiser.alphas_cumprod
        index = torch.randint(len(x_0), (self.config.batch,), generator=generator).to(x_0.device)
        t = draw_timesteps(len(alphas), len(index), generator, level).to(x_0.device)
        noise = torch.randn(len(index), *x_0.shape[1:], generator=generator).to(x_0.device)
        return index, add_noise(x_0[index], noise, t, alphas), t, noise

    def loss(self, embeddings: Tensor, rows: Tensor, *drawn: Tensor) -> Tensor:
        """Return the denoising loss of the drawn images, (n,)."""
        index, *noised = drawn
        return super().loss(embeddings, index, *noised)

    def embed_point(self, point: Tensor) -> Tensor:
        """Return the word (1, k, D) once per image of a batch."""
        return point.expand(self.config.batch, -1, -1)

    def compute_losses(self, point: Tensor) -> Tensor:
        """Return the mean loss (1,) of the word over the fixed batches."""
        return super().compute_losses(point).mean(0, keepdim=True)

    def result(self) -> AttackOutput:
        """Return the cases' prompts with the new word instead of the name."""
        word = self.best_point().expand(len(self.case_slots), -1, -1)
        with torch.no_grad():
            return AttackOutput(self.case_slots.encode(self.context.encoder, word), word)
