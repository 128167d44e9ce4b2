"""What the method asks of a denoiser."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Denoiser(Protocol):
    """Predicts noise. Gradients reach `conditioning`; the weights stay as they are."""

    alphas_cumprod: Tensor  # (T,) on the CPU
    latent_shape: tuple[int, int, int]  # (C, h, w)

    @property
    def device(self) -> torch.device:
        """Where latents and conditioning are to be."""
        ...

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the modules that a run must freeze; () where a host takes care of its own."""
        ...

    def blocks(self) -> tuple[nn.Module, ...]:
        """Return the modules that gradient checkpointing may compute again, none of them inside another."""
        ...

    def with_modules(self, make: Callable[[nn.Module], nn.Module]) -> Denoiser:
        """Return a denoiser that predicts with make(module) in place of each module it has."""
        ...

    def fingerprint(self) -> str:
        """Return what tells this denoiser's weights from another's."""
        ...

    def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """Return the predicted noise (B, C, h, w) in fp32.

        Args:
            x_t: (B, C, h, w) noisy latents in the variance-preserving scaling, x_t = sqrt(a) x_0 + sqrt(1 - a) noise.
            t: (B,) timesteps, 0 to T - 1.
            conditioning: (B, L, D) hidden states of the text encoder.
        """
        ...


def fingerprint(module: nn.Module) -> str:
    """Return a short digest that tells one module's weights from another's; it reads a few values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _with_own_dicts(value: Any) -> Any:
    """Return arguments whose dicts are copies: a host writes into its own while it goes through the blocks."""
    if isinstance(value, tuple):
        return tuple(_with_own_dicts(v) for v in value)
    return {k: _with_own_dicts(v) for k, v in value.items()} if isinstance(value, dict) else value


@contextlib.contextmanager
def checkpointed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules keep only what goes in, and compute the rest again in the backward pass (arXiv 1604.06174).

    A module that carries a `forward` of its own, as hosts put there, gets that one back.
    """
    before = {block: vars(block).get("forward") for block in blocks}

    def again(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(args: Any, kwargs: Any) -> Any:
            args, kwargs = _with_own_dicts((args, kwargs))
            return forward(*args, **kwargs)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return checkpoint(run, *_with_own_dicts((args, kwargs)), use_reentrant=False, preserve_rng_state=False)

        return call

    try:
        for block in before:
            vars(block)["forward"] = again(block.forward)
        yield
    finally:
        for block, forward in before.items():
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward


def scaled_gradients(conditioning: Tensor, predict: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """Return predict(conditioning) so that its gradient survives fp16, whose smallest step is 6e-8.

    On its way back the gradient is divided by its own maximum before it enters the network, and multiplied again, in
    fp32, where it leaves: loss scaling (arXiv 1710.03740) for one network. Other dtypes are left alone.
    """
    if dtype != torch.float16 or not (conditioning.requires_grad and torch.is_grad_enabled()):
        return predict(conditioning)
    scale = torch.ones((), device=conditioning.device)

    def enter(gradient: Tensor) -> Tensor:
        scale.copy_(gradient.abs().amax().float().clamp(min=1e-30))
        return gradient / scale.to(gradient.dtype)

    inside = conditioning.float() * 1.0
    inside.register_hook(lambda gradient: gradient * scale)
    output = predict(inside)
    output.register_hook(enter)
    return output


def add_noise(x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise; latents (B, C, h, w), t (B,)."""
    a = alphas_cumprod.to(x_0.device)[t].view(-1, 1, 1, 1)
    return a.sqrt() * x_0 + (1 - a).sqrt() * noise
