"""AdvUnlearn: adversarial unlearning for text-to-image diffusion models.

Train a CLIP text encoder to forget a concept so that adversarial prompts do not bring it back, attack encoders, and
evaluate both. Method: Zhang et al., "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in
Diffusion Models", NeurIPS 2024, arXiv 2405.15234.

    import advunlearn

    model = advunlearn.load("miniature")
    run = advunlearn.RunConfig(concept=advunlearn.ConceptConfig(concept="church"))

The names in `__all__` are imported on first use, so that `import advunlearn` loads neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attacks.base import AttackContext
    from .attacks.single_prompt import attack_prompt
    from .config.adversary import AdversaryConfig
    from .config.concept import ConceptConfig
    from .config.evaluation import EvaluateConfig
    from .config.training import BankConfig, RunConfig, TrainConfig
    from .evaluation.evaluator import Evaluator
    from .formats.text_encoders import save_encoder
    from .models.encoder_files import load_encoder
    from .models.loading import load
    from .prompts.retain import make_retain_prompts
    from .training.trainer import train

__version__ = "0.1.0"

__all__ = [
    "AdversaryConfig",
    "AttackContext",
    "BankConfig",
    "ConceptConfig",
    "EvaluateConfig",
    "Evaluator",
    "RunConfig",
    "TrainConfig",
    "attack_prompt",
    "load",
    "load_encoder",
    "make_retain_prompts",
    "save_encoder",
    "train",
]

_MODULES = {
    "AdversaryConfig": "config.adversary",
    "AttackContext": "attacks.base",
    "BankConfig": "config.training",
    "ConceptConfig": "config.concept",
    "EvaluateConfig": "config.evaluation",
    "Evaluator": "evaluation.evaluator",
    "RunConfig": "config.training",
    "TrainConfig": "config.training",
    "attack_prompt": "attacks.single_prompt",
    "load": "models.loading",
    "load_encoder": "models.encoder_files",
    "make_retain_prompts": "prompts.retain",
    "save_encoder": "formats.text_encoders",
    "train": "training.trainer",
}


def __getattr__(name: str) -> object:
    """Import a name of the public API on its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
