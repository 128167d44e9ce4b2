from __future__ import annotations

import pytest
import torch

from advunlearn.losses import attack_loss, denoising_loss, erase_loss, erase_target, retain_loss
from advunlearn.models.denoiser import scaled_gradients


def latents(*values: float) -> torch.Tensor:
    """One constant (1, 1, 2) latent per value."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 1, 2).contiguous()


def test_erase_target_by_hand() -> None:
    # uncond 1, cond 3, eta 1: 1 - (3 - 1) = -1. With eta 2: 1 - 2 * 2 = -3. With eta 0: 1.
    uncond, cond = latents(1.0), latents(3.0)
    assert erase_target(uncond, cond, 1.0).unique().tolist() == [-1.0]
    assert erase_target(uncond, cond, 2.0).unique().tolist() == [-3.0]
    assert erase_target(uncond, cond, 0.0).unique().tolist() == [1.0]


def test_erase_loss_by_hand() -> None:
    # Two samples: (2 - (-1))^2 = 9 and (5 - (0 - (1 - 0)))^2 = 36; mean 22.5.
    loss = erase_loss(latents(2.0, 5.0), latents(1.0, 0.0), latents(3.0, 1.0))
    assert loss.item() == pytest.approx(22.5)


def test_attack_retain_and_denoising_losses_by_hand() -> None:
    # (1 - 3)^2 = 4 and (0 - 1)^2 = 1: one value for each attacked prompt, the mean of 2.5 for training.
    for loss in (attack_loss, denoising_loss):
        assert loss(latents(1.0, 0.0), latents(3.0, 1.0)).tolist() == [4.0, 1.0]
    assert retain_loss(latents(1.0, 0.0), latents(3.0, 1.0)).item() == pytest.approx(2.5)


def test_erase_gradient_points_away_from_the_concept() -> None:
    # d/de (e - target)^2 at e = cond: 2 (3 - (-1)) = 8 for each of the two equal elements, mean -> 4 each.
    e = latents(3.0).requires_grad_(True)
    erase_loss(e, latents(1.0), latents(3.0)).backward()
    assert e.grad is not None
    assert e.grad.flatten().tolist() == pytest.approx([4.0, 4.0])


def test_losses_are_fp32_for_half_inputs() -> None:
    big = latents(300.0).half()  # 600^2 overflows fp16
    assert torch.isfinite(attack_loss(big, -big))


def test_small_gradients_survive_a_network_in_fp16() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, start = torch.randn(8, 8, generator=generator), torch.randn(2, 4, 8, generator=generator)

    def gradient(dtype: torch.dtype, scaled: bool) -> torch.Tensor:
        context = start.clone().requires_grad_(True)

        def predict(c: torch.Tensor) -> torch.Tensor:
            return (c.to(dtype) @ weight.to(dtype)).float()

        output = scaled_gradients(context, predict, dtype) if scaled else predict(context)
        return torch.autograd.grad(1e-7 * output.square().mean(), context)[0]

    exact = gradient(torch.float32, True)
    assert torch.equal(exact, gradient(torch.float32, False))  # other dtypes are left alone
    lost, kept = gradient(torch.float16, False), gradient(torch.float16, True)
    assert (lost - exact).norm() > 0.5 * exact.norm()
    assert (kept - exact).norm() < 0.01 * exact.norm()
