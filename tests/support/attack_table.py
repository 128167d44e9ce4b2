"""Helpers of the attack tests: two cases, and a small budget for each attack."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advunlearn.attacks.base import Attack, AttackContext, AttackTargets, ReferenceModel
from advunlearn.attacks.registry import attack_settings, make_attack
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.losses import denoising_loss
from advunlearn.models.ddim import ddim_sample
from advunlearn.models.denoiser import add_noise
from advunlearn.models.loading import TextToImage
from advunlearn.models.text_encoder import embedding_table, frozen
from advunlearn.models.tokenizer import tokenize
from advunlearn.prompts import synonyms

PROMPTS = ["a photo of a church", "a church"]
# Budgets with which each attack lowers its objective within a second or two. UnlearnDiffAtk has one timestep: its first
# steps would depend on the number of steps otherwise.
TINY: dict[str, dict[str, Any]] = {
    "random_prefix": {"steps": 2},
    "seed_search": {"steps": 2},
    "synonym_search": {"steps": 3},
    "emphasis": {"steps": 3},
    "ring_a_bell": {"steps": 6, "tokens": 3, "population": 12, "positions": 8},
    "mma": {"steps": 5, "tokens": 4, "candidates": 16, "top": 32},
    "pez": {"steps": 12, "tokens": 4},
    "p4d_n": {"steps": 8, "tokens": 4},
    "p4d_k": {"steps": 8},
    "unlearndiffatk": {"steps": 10, "tokens": 3, "lr": 0.3, "start": "random", "timesteps": 1},
    "soft_prefix": {"steps": 8, "tokens": 3, "radius": 3.0},
    "cce": {"steps": 12, "batch": 4},
}
CPU = torch.device("cpu")
BLIND = ("random_prefix", "seed_search", "synonym_search", "emphasis")  # attacks without an objective


def two_cases(model: TextToImage) -> AttackContext:
    """Make two cases on a model whose text encoder encodes a church as a dog."""
    erased = copy.deepcopy(model.text_encoder)
    token = model.tokenizer.convert_tokens_to_ids
    table = embedding_table(erased)
    table.data[token("church</w>")] = table.data[token("dog</w>")]
    denoiser = model.denoiser
    noise = torch.randn(len(PROMPTS), *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    noise = noise.to(denoiser.device)
    x_0 = ddim_sample(denoiser, model.encode(PROMPTS), model.encode([""]), noise, 6, 3.0)
    targets = AttackTargets(tokenize(model.tokenizer, PROMPTS).to(denoiser.device), x_0, model.tokenizer.eos_token_id)
    concept = ConceptConfig(concept="church")
    reference = ReferenceModel(model.text_encoder, denoiser)
    names = synonyms.miniature_synonyms(concept)
    return AttackContext(denoiser, erased, model.tokenizer, PROMPTS, targets, reference, concept, names)


def attacked(name: str, context: AttackContext, seed: int = 1, **overrides: Any) -> tuple[Attack, list[float]]:
    """Run an attack to its end."""
    settings = attack_settings(name, EvaluateConfig(), TINY[name] | overrides)
    with frozen(context.encoder, *context.denoiser.modules()):
        attack = make_attack(name, context, settings, seed)
        return attack, attack.run()


def cancelled(name: str, context: AttackContext, after: int) -> Attack:
    """Run an attack until its callback raises."""

    class Cancelled(Exception):
        pass

    def on_step(step: int, loss: float) -> None:
        if step == after:
            raise Cancelled

    with frozen(context.encoder, *context.denoiser.modules()):
        attack = make_attack(name, context, attack_settings(name, EvaluateConfig(), TINY[name]), 1)
        with pytest.raises(Cancelled):
            attack.run(on_step)
    return attack


def objective(context: AttackContext, conditioning: Tensor) -> float:
    """Return the mean denoising loss of the cases' images with a conditioning (N, L, D), over many noise levels."""
    x_0, levels = context.targets.x_0, torch.arange(62, 1000, 125)
    rows, t = torch.arange(len(x_0)).repeat_interleave(len(levels)), levels.repeat(len(x_0))
    noise = torch.randn(x_0[rows].shape, generator=torch.Generator().manual_seed(5))
    x_t = add_noise(x_0[rows], noise, t, context.denoiser.alphas_cumprod)
    with torch.no_grad():
        return denoising_loss(context.denoiser.noise_pred(x_t, t, conditioning[rows]), noise).mean().item()


def state_of(*modules: nn.Module) -> list[Tensor]:
    return [t.clone() for m in modules for t in m.state_dict().values()]
