"""Attack one prompt and say what was found: text for a discrete attack, embeddings for a continuous one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config.attacks import JUDGE_ONLY
from ..config.concept import ConceptConfig
from ..config.evaluation import EvaluateConfig
from ..errors import AdvUnlearnError
from ..losses import denoising_loss
from ..models.denoiser import Denoiser, add_noise
from ..models.text_encoder import frozen, tokenize
from .base import AttackContext, AttackTargets, ReferenceModel
from .registry import attack_class, attack_settings, make_attack

DRAWS = 16  # noise levels at which the restarts are compared


@dataclass(frozen=True)
class PromptAttackResult:
    """The best of an attack's restarts."""

    embeddings: Tensor  # (k, D)
    conditioning: Tensor  # (1, L, D) of the whole prompt
    text: str  # the adversarial prompt; of a continuous attack: the prompt alone
    exact: bool  # whether the text splits into the very tokens found; False for a continuous attack
    around: tuple[str, str] | None  # the text before and after the embeddings, where they stand together
    losses: list[float]  # mean over the restarts before each step
    restarts: int  # how many starts there were
    loss: float  # of what was found, at `DRAWS` noise levels
    loss_before: float  # of the prompt as it was, at the same


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
    original: ReferenceModel | None = None,
    concept: ConceptConfig | None = None,
    given: Mapping[str, Any] | None = None,
) -> PromptAttackResult:
    """Search a prompt that draws a picture's content, from several starts side by side; keep the best.

    Args:
        denoiser, encoder, tokenizer: the attacked model; it is unchanged afterwards.
        prompt: the prompt that names the concept.
        x_0: (1, C, h, w) latents of a picture that shows the concept.
        name: one of `ATTACK_NAMES`, but for those of `JUDGE_ONLY`.
        restarts: number of starts; where starts do not differ there is one. Of a discrete attack one whose text splits
            into its tokens again is preferred.
        config: steps, tokens, learning rates, ball and seed.
        on_step: called after each step with its number and the mean loss; may raise to cancel.
        original: the model before erasing, for attacks that need it.
        concept: for attacks that need it.
        given: settings of the attack that go over those of `config`.

    Raises AdvUnlearnError when the attack lacks something that it needs.
    """
    config = config or EvaluateConfig()
    if name in JUDGE_ONLY:
        raise AdvUnlearnError(f"{name} tries what only a judge can tell apart; use it in an evaluation")
    restarts = restarts if attack_class(name).restarts else 1
    ids = tokenize(tokenizer, [prompt] * restarts).to(denoiser.device)
    target = AttackTargets(ids, x_0.expand(restarts, *x_0.shape[1:]), tokenizer.eos_token_id)
    scene = AttackContext(
        denoiser, encoder, tokenizer, [prompt] * restarts, target, original or ReferenceModel(), concept
    )
    with frozen(encoder, *denoiser.modules()):
        attack = make_attack(name, scene, attack_settings(name, config, given), config.seed)
        losses = attack.run(on_step)
        found, texts = attack.found(), attack.texts()
        contexts = torch.cat([scene.encode([prompt]), found.conditioning])
        scores = compare(denoiser, contexts, x_0, torch.Generator().manual_seed(config.seed + 3))
    ranked = scores[1:].clone()
    if any(t["exact"] for t in texts):
        ranked[[i for i, t in enumerate(texts) if not t["exact"]]] = torch.inf
    best = int(ranked.argmin())
    text, exact = (texts[best]["prompt"], texts[best]["exact"]) if texts else (prompt, False)
    return PromptAttackResult(
        found.embeddings[best].detach().clone(),
        found.conditioning[best : best + 1],
        text,
        exact,
        attack.around(best),
        losses,
        restarts,
        float(scores[1 + best]),
        float(scores[0]),
    )
