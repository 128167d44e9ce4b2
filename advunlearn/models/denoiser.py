"""The protocol of denoisers, gradient checkpointing, and gradients in fp16."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


class Denoiser(Protocol):
    """Predicts the noise in latents. Gradients reach the conditioning; the weights do not change."""

    alphas_cumprod: Tensor  # (T,) on the CPU
    latent_shape: tuple[int, int, int]  # (C, h, w)

    @property
    def device(self) -> torch.device:
        """Device of the latents and the conditioning."""
        ...

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the modules that a run must freeze; () if a host freezes its own."""
        ...

    def blocks(self) -> tuple[nn.Module, ...]:
        """Return the modules whose activations gradient checkpointing may recompute; none contains another."""
        ...

    def with_modules(self, make: Callable[[nn.Module], nn.Module]) -> Denoiser:
        """Return a denoiser that predicts with make(module) instead of each of its modules."""
        ...

    def fingerprint(self) -> str:
        """Return a short text that identifies the denoiser's weights."""
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
    """Return a short hash that identifies a module's weights, of the first 16 values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _copy_dicts(value: T) -> T:
    """Return arguments with every dict copied: a host changes the dicts that it passes from block to block."""
    if isinstance(value, tuple):
        return tuple(_copy_dicts(v) for v in value)  # type: ignore[return-value]
    return {k: _copy_dicts(v) for k, v in value.items()} if isinstance(value, dict) else value  # type: ignore[return-value]


def _checkpoint_forward(forward: Callable[..., object]) -> Callable[..., object]:
    """Return a forward method that stores its arguments only and is computed again in the backward pass."""

    def run(args: tuple, kwargs: dict) -> object:
        args, kwargs = _copy_dicts((args, kwargs))
        return forward(*args, **kwargs)

    def call(*args: object, **kwargs: object) -> object:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(run, *_copy_dicts((args, kwargs)), use_reentrant=False, preserve_rng_state=False)

    return call


@contextlib.contextmanager
def checkpointed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Apply gradient checkpointing to modules: store only their inputs (arXiv 1604.06174).

    Afterwards every module has its previous `forward` again, be it the class's or one that a host has put in its place.
    """
    originals = {block: vars(block).get("forward") for block in blocks}
    try:
        for block in originals:
            vars(block)["forward"] = _checkpoint_forward(block.forward)
        yield
    finally:
        for block, forward in originals.items():
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward


def scaled_gradients(conditioning: Tensor, predict: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """Return predict(conditioning), with its gradient scaled so that it does not underflow in fp16 (below 6e-8).

    In the backward pass the gradient is divided by its maximum before it enters the network, and multiplied by it in
    fp32 where it leaves: loss scaling (arXiv 1710.03740) for one network. Other dtypes need none.
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
