"""Gradient checkpointing: the same numbers from less memory, and the model as it was."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.memory.estimate import estimate
from advunlearn.memory.fake_tensors import LiveMemory
from advunlearn.memory.plan import Plan
from advunlearn.models.denoiser import checkpointed
from advunlearn.models.loading import TextToImage
from advunlearn.models.meta_model import skeleton
from advunlearn.training.trainer import train


def gradient(model: TextToImage) -> torch.Tensor:
    """Return the gradient of a prediction's square sum to the conditioning."""
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, *model.denoiser.latent_shape, generator=generator), torch.tensor([100, 900])
    context = model.encode(["a church", "a dog"]).requires_grad_(True)
    return torch.autograd.grad(model.denoiser.noise_pred(x, t, context).square().sum(), context)[0]


def test_gradients_are_the_same_and_every_block_runs_twice(model: TextToImage) -> None:
    runs: Counter[str] = Counter()
    blocks = model.denoiser.blocks()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: runs.update([name]))
        for name, module in model.denoiser.unet.named_modules()  # type: ignore[attr-defined]
        if name.endswith(".conv1") or name.endswith(".proj_in")  # one inside each block
    ]
    try:
        expected = gradient(model)
        assert set(runs.values()) == {1} and len(runs) == len(blocks)
        with checkpointed(blocks):
            assert torch.equal(gradient(model), expected)
            # Once more in the backward pass, but for what lies before the first attention and has no gradient.
            assert Counter(runs.values()) == {3: len(blocks) - 1, 2: 1}
            with torch.no_grad():
                model.denoiser.noise_pred(torch.zeros(1, 4, 8, 8), torch.tensor([5]), model.encode(["a dog"]))
            assert Counter(runs.values()) == {4: len(blocks) - 1, 3: 1}
    finally:
        for hook in hooks:
            hook.remove()


def test_a_module_gets_back_the_forward_it_had() -> None:
    plain, own = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    own.forward = forward = lambda x: x * 3  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="in between"), checkpointed([plain, own]):
        assert torch.equal(own(torch.ones(1, 2, requires_grad=True)), torch.full((1, 2), 3.0))
        raise ValueError("in between")
    assert "forward" not in vars(plain) and own.forward is forward


def test_what_goes_along_is_kept_as_it_was() -> None:
    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor, options: dict[str, float]) -> torch.Tensor:
            return x.square() * options["scale"]

    module, options, x = Scaled(), {"scale": 2.0}, torch.tensor([3.0], requires_grad=True)
    with checkpointed([module]):
        y = module(x, options)
        options["scale"] = 100.0  # hosts write into such a dict while they go through the blocks
        (found,) = torch.autograd.grad(y, x)
    assert found.item() == 2 * 2 * 3


@pytest.mark.parametrize(
    ("mode", "method"), [("advunlearn", "text_encoder"), ("esd_unet", "text_encoder"), ("advunlearn", "full")]
)
def test_a_run_ends_with_the_same_weights(model: TextToImage, small_bank: BankConfig, mode: str, method: str) -> None:
    config = TrainConfig(mode=mode, train_method=method, iterations=2, warmup=1, batch=2, retain_batch=2)  # type: ignore[arg-type]
    ends = []
    for checkpointing in (False, True):
        chosen = dataclasses.replace(config, checkpointing=checkpointing)
        result = train(model, RunConfig(concept=ConceptConfig(), train=chosen, bank=small_bank), ["a dog"])
        trained = result.denoiser.unet if config.unet_method else result.encoder  # type: ignore[attr-defined]
        ends.append(trained.state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert not any("forward" in vars(m) for m in model.denoiser.blocks())


@pytest.mark.slow
def test_it_takes_less_memory_as_predicted_and_one_forward_more(model: TextToImage, small_bank: BankConfig) -> None:
    cpu, shape = torch.device("cpu"), skeleton("miniature", torch.device("cpu"), torch.float32)
    config = TrainConfig(iterations=2, warmup=0, batch=4, retain_batch=4, checkpointing=True)
    plan = Plan(
        run=RunConfig(attack=AdversaryConfig(steps=2, restarts=2), train=config, bank=small_bank), resolution=64
    )
    without = dataclasses.replace(plan, run=plan.run.replace(train={"checkpointing": False}))
    less, more = (estimate(shape, p, ["a dog"], cpu) for p in (plan, without))
    assert less.activations["train"] < 0.75 * more.activations["train"]  # the text encoder's own are left
    assert less.forwards.attack / more.forwards.attack == less.forwards.train / more.forwards.train == 4 / 3
    with LiveMemory() as live:
        for part in (model.text_encoder, model.denoiser.unet, model.vae):  # type: ignore[attr-defined]
            for tensor in (*part.parameters(), *part.buffers()):
                live.follow(tensor)
        train(model, plan.run, ["a dog"])
    assert less.peak == pytest.approx(max(live.peaks.values()), rel=0.05)
