"""Attack one prompt and say what was found: text for the discrete attack, embeddings for the soft one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import EvaluateConfig
from ..denoisers.base import Denoiser, add_noise
from ..losses import denoising_loss
from ..text_encoder import embedding_table, frozen, tokenize
from .unlearndiffatk import Target, TokenSearch, conditioning, make_search, search_vocabulary, unlearndiffatk

DRAWS = 16  # noise levels at which the restarts are compared


@dataclass(frozen=True)
class Found:
    """The best prefix of an attack."""

    embeddings: Tensor  # (k, D)
    conditioning: Tensor  # (1, L, D) of prefix and prompt
    text: str  # the adversarial prompt; of a soft prefix: the prompt alone
    exact: bool  # whether the text splits into the very tokens found; False for a soft prefix
    losses: list[float]  # mean over the restarts before each step
    loss: float  # of the prefix found, at `DRAWS` noise levels
    loss_before: float  # of the prompt without a prefix, at the same


def as_text(tokenizer: Any, ids: Tensor, prompt: str) -> dict[str, Any]:
    """Return prefix tokens (k,) and a prompt as text; `exact` says whether it splits into those tokens again."""
    text = f"{tokenizer.decode(ids)} {prompt}"
    exact = tokenizer(text).input_ids[1:-1] == ids.tolist() + tokenizer(prompt).input_ids[1:-1]
    return {"prompt": text, "tokens": tokenizer.convert_ids_to_tokens(ids.tolist()), "exact": exact}


@torch.no_grad()
def compare(denoiser: Denoiser, contexts: Tensor, x_0: Tensor, generator: torch.Generator) -> Tensor:
    """Return the denoising loss (N,) of N conditionings (N, L, D) for one target (1, C, h, w), same noise for all."""
    total = torch.zeros(len(contexts))
    steps = len(denoiser.alphas_cumprod)
    for k in range(DRAWS):
        t = torch.full((len(contexts),), (2 * k + 1) * steps // (2 * DRAWS), device=x_0.device)
        noise = torch.randn(x_0.shape, generator=generator).to(x_0.device).expand(len(contexts), *x_0.shape[1:])
        x_t = add_noise(x_0.expand_as(noise), noise, t, denoiser.alphas_cumprod)
        total += denoising_loss(denoiser.noise_pred(x_t, t, contexts), noise).cpu()
    return total / DRAWS


def attack_prompt(
    denoiser: Denoiser,
    encoder: Any,
    tokenizer: Any,
    prompt: str,
    x_0: Tensor,
    *,
    name: str = "unlearndiffatk",
    restarts: int = 4,
    config: EvaluateConfig | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Found:
    """Search prefixes that make a prompt draw a picture's content, from several starts side by side; keep the best.

    Args:
        denoiser, encoder, tokenizer: the attacked model; it is unchanged afterwards.
        prompt: the prompt that the prefix is put in front of.
        x_0: (1, C, h, w) latents of a picture that shows the concept.
        name: "unlearndiffatk" (discrete) or "soft_prefix".
        restarts: number of starts. Of a discrete attack one whose text splits into its tokens again is preferred.
        config: steps, tokens, learning rates, ball and seed.
        on_step: called after each step with its number and the mean loss; may raise to cancel.
    """
    config = config or EvaluateConfig()
    ids = tokenize(tokenizer, [prompt] * restarts).to(denoiser.device)
    target = Target(ids, x_0.expand(restarts, *x_0.shape[1:]), tokenizer.eos_token_id)
    search, lr = make_search(name, embedding_table(encoder), search_vocabulary(tokenizer), restarts, config)
    with frozen(encoder, *denoiser.modules()):
        losses = unlearndiffatk(
            denoiser, encoder, target, search, steps=config.attack_steps, lr=lr,
            generator=torch.Generator().manual_seed(config.seed + 1), on_step=on_step,
        )  # fmt: skip
        with torch.no_grad():
            plain = conditioning(encoder, Target(ids[:1], x_0, target.eos), search.found()[:1, :0])
            contexts = conditioning(encoder, target, search.found())
        scores = compare(denoiser, torch.cat([plain, contexts]), x_0, torch.Generator().manual_seed(config.seed + 3))
    texts = [as_text(tokenizer, row, prompt) for row in search.token_ids()] if isinstance(search, TokenSearch) else []
    ranked = scores[1:].clone()
    if any(t["exact"] for t in texts):
        ranked[[i for i, t in enumerate(texts) if not t["exact"]]] = torch.inf
    best = int(ranked.argmin())
    text, exact = (texts[best]["prompt"], texts[best]["exact"]) if texts else (prompt, False)
    return Found(
        search.found()[best].detach().clone(), contexts[best : best + 1], text, exact, losses,
        float(scores[1 + best]), float(scores[0]),
    )  # fmt: skip
