"""The test attack: UnlearnDiffAtk (Zhang et al., arXiv 2310.11868), discrete and as a bounded soft prefix.

It needs no original model: its target is a picture of the concept, and its loss is the denoising loss
|| noise - eps(noised x_0, t | c') ||^2 of the attacked model. Each case (prompt, seed, target) has a prefix of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import EvaluateConfig
from ..denoisers.base import Denoiser, add_noise
from ..losses import denoising_loss
from ..sampling import batch_of
from ..spans import insert_prefix
from ..text_encoder import encode
from .projections import project_linf, project_simplex


@dataclass(frozen=True)
class Target:
    """N cases to attack: their prompts and, for each, the latents of a picture that shows the concept."""

    ids: Tensor  # (N, L) token ids of the clean prompts
    x_0: Tensor  # (N, C, h, w)
    eos: int


class Search(Protocol):
    """A set of prefixes that an attack moves through."""

    parameter: Tensor

    def embeddings(self) -> Tensor:
        """Return the differentiable prefix embeddings (N, k, D) of the next gradient step."""
        ...

    def project(self) -> None:
        """Bring the parameter back to its set, in place."""
        ...

    def found(self) -> Tensor:
        """Return the prefix embeddings (N, k, D) that the attack stands for now."""
        ...


class TokenSearch:
    """Discrete search: a point on the vocabulary's simplex per prefix token, drawn as a token, straight through."""

    def __init__(self, table: Tensor, vocabulary: Tensor, count: int, tokens: int, generator: torch.Generator) -> None:
        self.rows, self.vocabulary, self.generator = table[vocabulary].detach().float(), vocabulary, generator
        w = torch.rand(count, tokens, len(vocabulary), generator=generator).to(table.device)
        self.parameter = (w / w.sum(-1, keepdim=True)).requires_grad_(True)

    def embeddings(self) -> Tensor:
        """Draw one token per place from the current weights; the gradient passes to the weights unchanged."""
        w = self.parameter
        drawn = torch.multinomial(w.detach().flatten(0, 1).cpu() + 1e-8, 1, generator=self.generator)
        hard = torch.zeros_like(w).scatter_(-1, drawn.to(w.device).view(*w.shape[:2], 1), 1.0)
        return (hard - w.detach() + w) @ self.rows

    def project(self) -> None:
        """Project every place's weights onto the simplex."""
        with torch.no_grad():
            self.parameter.copy_(project_simplex(self.parameter))

    def token_ids(self) -> Tensor:
        """Return the most likely tokens (N, k), as ids of the full vocabulary."""
        return self.vocabulary[self.parameter.detach().argmax(-1).cpu()]

    def found(self) -> Tensor:
        """Return the embeddings of the most likely tokens."""
        return self.rows[self.parameter.detach().argmax(-1)]


class SoftSearch:
    """Search in embedding space, inside an L-inf ball around random real tokens."""

    def __init__(
        self, table: Tensor, vocabulary: Tensor, count: int, tokens: int, generator: torch.Generator, radius: float
    ) -> None:
        drawn = vocabulary[torch.randint(len(vocabulary), (count, tokens), generator=generator)]
        self.centre, self.radius = table[drawn.to(table.device)].detach().float(), radius
        self.parameter = self.centre.clone().requires_grad_(True)

    def embeddings(self) -> Tensor:
        """Return the embeddings themselves."""
        return self.parameter

    def project(self) -> None:
        """Project onto the ball."""
        with torch.no_grad():
            self.parameter.copy_(project_linf(self.parameter, self.centre, self.radius))

    def found(self) -> Tensor:
        """Return the current embeddings."""
        return self.parameter.detach()


def search_vocabulary(tokenizer: Any) -> Tensor:
    """Return the ids that the attacks may use: all but the two special tokens and the bare bytes."""
    bare = 512  # CLIP's first 512 ids are the byte alphabet, alone and as a word's end
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return torch.tensor([i for i in range(bare, len(tokenizer)) if i not in special])


def make_search(
    name: str, table: Tensor, vocabulary: Tensor, count: int, config: EvaluateConfig
) -> tuple[Search, float]:
    """Return what the test attack `name` searches for `count` prefixes, and its learning rate.

    Args:
        name: "unlearndiffatk" (discrete) or "soft_prefix" (embedding space).
        table: (V, D) token embeddings of the attacked encoder.
        vocabulary: ids that the search may use.
        count: number of prefixes.
        config: tokens, learning rates, ball, seed.
    """
    table, generator = table.detach(), torch.Generator().manual_seed(config.seed + 2)
    if name == "unlearndiffatk":
        return TokenSearch(table, vocabulary, count, config.attack_tokens, generator), config.attack_lr
    sigma = table.float().std().item()
    radius = config.prefix_radius * sigma
    return SoftSearch(table, vocabulary, count, config.attack_tokens, generator, radius), config.prefix_lr * sigma


def conditioning(encoder: Any, target: Target, prefix: Tensor) -> Tensor:
    """Return the conditioning (N, L, D) of the prompts with a prefix (N, k, D) in front."""
    ids, span = insert_prefix(target.ids, prefix.shape[1], target.eos)
    return encode(encoder, ids, prefix, span)


def unlearndiffatk(
    denoiser: Denoiser,
    encoder: Any,
    target: Target,
    search: Search,
    *,
    steps: int,
    lr: float,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None = None,
    chunk: int = 64,
) -> list[float]:
    """Attack N cases at once; the prefixes found are `search.found()`.

    Args:
        denoiser, encoder: the attacked model; its weights are frozen by the caller.
        target: prompts and target latents.
        search: the set searched; its parameter is optimised by Adam, then projected.
        steps: gradient steps; each draws one timestep and one noise per case.
        lr: Adam's learning rate, in the parameter's own units.
        generator: source of timesteps and noise, on the CPU.
        on_step: called after each step with its number and the mean loss; may raise to cancel.
        chunk: cases differentiated together, if their latents are 8 x 8.

    Returns:
        the mean loss before each step.
    """
    adam, losses, x_0 = torch.optim.Adam([search.parameter], lr=lr), [], target.x_0
    for step in range(steps):
        t = torch.randint(len(denoiser.alphas_cumprod), (len(x_0),), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator).to(x_0.device)
        x_t, t = add_noise(x_0, noise, t.to(x_0.device), denoiser.alphas_cumprod), t.to(x_0.device)
        prefix, total = search.embeddings(), 0.0
        gradient = torch.zeros_like(prefix)
        for i in torch.arange(len(x_0)).split(batch_of(chunk, x_0)):
            part = prefix.detach()[i].requires_grad_(True)
            context = conditioning(encoder, Target(target.ids[i], x_0[i], target.eos), part)
            loss = denoising_loss(denoiser.noise_pred(x_t[i], t[i], context), noise[i]).sum()
            (gradient[i],) = torch.autograd.grad(loss, part)
            total += loss.item()
        adam.zero_grad()
        prefix.backward(gradient)
        adam.step()
        search.project()
        losses.append(total / len(x_0))
        if on_step is not None:
            on_step(step + 1, losses[-1])
    return losses
