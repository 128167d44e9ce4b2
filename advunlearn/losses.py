"""The losses of AdvUnlearn (arXiv 2405.15234); numbers are the paper's equations.

What trains is a mean over the batch; what an attack minimises has one value for each attacked prompt, (B,).
"""

from __future__ import annotations

from torch import Tensor


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared error of each sample: (B, C, h, w), (B, C, h, w) -> (B,)."""
    return (a.float() - b.float()).square().flatten(1).mean(1)


def erase_target(anchor: Tensor, cond: Tensor, negative_guidance: float) -> Tensor:
    """Return eps_o(a) - eta * (eps_o(c_e) - eps_o(a)), the target of eq. (3); all (B, C, h, w)."""
    return anchor - negative_guidance * (cond - anchor)


def erase_loss(noise_pred: Tensor, anchor: Tensor, cond: Tensor, negative_guidance: float = 1.0) -> Tensor:
    """Eq. (3), ESD: push the prediction for the concept to the far side of its anchor's.

    Args:
        noise_pred: (B, C, h, w) prediction of the model in training for the concept's prompt.
        anchor: (B, C, h, w) prediction of the frozen original model for the empty prompt, as in the paper; for a
            style, for the same subject without the style, so that the subject is not erased with it.
        cond: (B, C, h, w) prediction of the frozen original model for the concept's prompt.
        negative_guidance: eta.
    """
    return squared_error(noise_pred, erase_target(anchor, cond, negative_guidance)).mean()


def attack_loss(noise_pred: Tensor, cond: Tensor) -> Tensor:
    """Eq. (4), (B,): how far each attacked prompt is from bringing the concept back."""
    return squared_error(noise_pred, cond)


def retain_loss(noise_pred: Tensor, cond: Tensor) -> Tensor:
    """Second term of eq. (6): the retained prompts are to be predicted as the original model predicts them."""
    return squared_error(noise_pred, cond).mean()


def denoising_loss(noise_pred: Tensor, noise: Tensor) -> Tensor:
    """UnlearnDiffAtk (arXiv 2310.11868), (B,): || noise - eps(noised x_0, t | c') ||^2; needs no original model."""
    return squared_error(noise_pred, noise)
