"""Attack a single prompt: the result is text for a discrete attack, embeddings for a continuous one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.attacks import JUDGE_ONLY
from ..config.evaluation import EvaluateConfig
from ..errors import AdvUnlearnError
from ..files import JsonDict
from ..losses import denoising_loss
from ..models.denoiser import Denoiser, add_noise
from ..models.text_encoder import frozen
from .base import AttackContext
from .pgd import OnStep
from .registry import attack_class, attack_settings, make_attack
from .vocabulary import PromptRow

NOISE_LEVELS = 16  # at which the restarts are compared


@dataclass(frozen=True, kw_only=True)
class PromptAttackResult:
    """The best of an attack's restarts."""

    embeddings: Tensor  # (k, D)
    conditioning: Tensor  # (1, L, D) of the whole prompt
    text: str  # the adversarial prompt; for a continuous attack the clean prompt
    exact: bool  # whether tokenizing the text gives the found tokens again; False for a continuous attack
    surrounding_text: tuple[str, str] | None  # before and after the embeddings, if they are contiguous
    losses: list[float]  # mean over the restarts before each step
    restarts: int
    loss: float  # mean denoising loss of the result over `NOISE_LEVELS`
    loss_before: float  # the same for the clean prompt


@torch.no_grad()
def compare_conditionings(denoiser: Denoiser, conditioning: Tensor, x_0: Tensor, generator: torch.Generator) -> Tensor:
    """Return the denoising losses (N,) of conditionings (N, L, D) for one target (1, C, h, w), with the same noise."""
    count = len(conditioning)
    total = torch.zeros(count)
    steps = len(denoiser.alphas_cumprod)
    for k in range(NOISE_LEVELS):
        t = torch.full((count,), (2 * k + 1) * steps // (2 * NOISE_LEVELS), device=x_0.device)
        noise = torch.randn(x_0.shape, generator=generator).to(x_0.device).expand(count, *x_0.shape[1:])
        x_t = add_noise(x_0.expand_as(noise), noise, t, denoiser.alphas_cumprod)
        total += denoising_loss(denoiser.noise_pred(x_t, t, conditioning), noise).cpu()
    return total / NOISE_LEVELS


def choose_best(losses: Tensor, prompts: Sequence[PromptRow]) -> int:
    """Return the index of the lowest loss (N,), among the exact prompts if there are any."""
    if any(prompt["exact"] for prompt in prompts):
        exact = torch.tensor([prompt["exact"] for prompt in prompts])
        losses = losses.masked_fill(~exact, torch.inf)
    return int(losses.argmin())


def attack_prompt(
    context: AttackContext,
    name: str = "unlearndiffatk",
    *,
    restarts: int = 4,
    config: EvaluateConfig | None = None,
    overrides: JsonDict | None = None,
    on_step: OnStep | None = None,
) -> PromptAttackResult:
    """Search for a prompt that generates an image's content, from several parallel starts; return the best.

    Args:
        context: the attacked model and one prompt, see `AttackContext.for_prompt`; the model is left unchanged.
        name: one of `ATTACK_NAMES` without those of `JUDGE_ONLY`.
        restarts: number of starts (one for an attack whose starts do not differ). Of a discrete attack, prompts that
            can be typed (`exact`) are preferred.
        config: steps, tokens, learning rates, radius and seed.
        overrides: settings of the attack that override those of `config`.
        on_step: called after each step with its number, from 1, and the mean loss; may raise to cancel.

    Raises AdvUnlearnError when the attack lacks something that it needs, or can only be used with a judge.
    """
    config = config or EvaluateConfig()
    if name in JUDGE_ONLY:
        raise AdvUnlearnError(f"{name} makes attempts that only a judge can compare; use it in an evaluation")
    starts = context.repeat(restarts if attack_class(name).restarts else 1)
    with frozen(context.encoder, *context.denoiser.modules()):
        attack = make_attack(name, starts, attack_settings(name, config, overrides), config.seed)
        losses = attack.run(on_step)
        output = attack.result()
        conditioning = torch.cat([context.encode(context.prompts), output.conditioning])
        generator = torch.Generator().manual_seed(config.seed + 3)
        compared = compare_conditionings(context.denoiser, conditioning, context.targets.x_0, generator)
    found = attack.prompts()
    best = choose_best(compared[1:], found)
    return PromptAttackResult(
        embeddings=output.embeddings[best].detach().clone(),
        conditioning=output.conditioning[best : best + 1],
        text=found[best]["prompt"] if found else context.prompts[0],
        exact=bool(found) and found[best]["exact"],
        surrounding_text=attack.surrounding_text(best),
        losses=losses,
        restarts=len(starts.prompts),
        loss=float(compared[1 + best]),
        loss_before=float(compared[0]),
    )
