"""AdvUnlearn: adversarial unlearning for text-to-image diffusion models.

Train a CLIP text encoder to forget a concept so that adversarial prompts do not bring it back, attack encoders, and
measure both. Method: Zhang et al., "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in
Diffusion Models", NeurIPS 2024, arXiv 2405.15234.
"""

__version__ = "0.1.0"
