"""Micro-batches: a batch in parts gives the gradient of the whole batch, in training and in the attack."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.models.counting import count_forwards
from advunlearn.models.loading import TextToImage, load
from advunlearn.training.bank import BankSamples, make_banks
from advunlearn.training.micro_batches import row_losses, split_batch
from advunlearn.training.trainer import Trainer, train

RETAIN = ["a dog", "a photo of a castle"]
RUN = RunConfig(
    concept=ConceptConfig(concept="church\nsailboat"),
    train=TrainConfig(iterations=2, warmup=0, batch=5, retain_batch=4, clean_share=0.4, retain_weight=0.7, lr=1e-4),
    attack=AdversaryConfig(steps=2, restarts=3, inversion_tokens=2, inversion_steps=2, update="adam", step_size=0.05),
    bank=BankConfig(trajectories=4, retain_trajectories=4, sampling_steps=2, dtype="float32"),
)


def make_samples(count: int) -> BankSamples:
    rows = torch.arange(count).float()
    return BankSamples(rows, rows, rows, rows, rows.long())


def test_parts_follow_each_other_and_weigh_as_much_as_the_batch() -> None:
    parts = list(split_batch(make_samples(5), make_samples(4), 3))
    concept = [part for part, _ in parts if part is not None]
    retained = [part for _, part in parts if part is not None]
    assert [part.x_t.tolist() for part in concept] == [[0, 1, 2], [3, 4]]
    assert [part.first for part in concept] == [0, 3]
    assert [part.weight for part in concept] == pytest.approx([0.6, 0.4])
    assert [part.weight for part in retained] == pytest.approx([0.75, 0.25])
    for size in (0, 9):
        ((whole, rest),) = split_batch(make_samples(5), make_samples(4), size)
        assert whole is not None and rest is not None and (whole.weight, rest.weight) == (1.0, 1.0)


def test_row_losses_have_the_gradient_of_the_whole_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    conditioning = torch.randn(5, 3, 2, dtype=torch.float64, generator=generator)
    weights = torch.randn(5, 3, 2, dtype=torch.float64, generator=generator)
    sizes: list[int] = []

    def row_loss(rows: slice, part: Tensor) -> Tensor:
        sizes.append(len(part))
        return (part * weights[rows]).exp().flatten(1).mean(1)

    def gradient(size: int) -> Tensor:
        x = conditioning.clone().requires_grad_(True)
        upstream = torch.arange(5, dtype=torch.float64)
        (row_losses(row_loss, x, size) * upstream).sum().backward()
        assert x.grad is not None
        return x.grad

    whole = gradient(0)
    assert whole.abs().max() > 0.1 and sizes == [5]
    assert (gradient(2) - whole).abs().max() < 1e-15
    assert sizes == [5, 2, 2, 1]


def gradients(model: TextToImage, run: RunConfig) -> list[Tensor]:
    """Return the gradients of an iteration after its attack."""
    generator = torch.Generator().manual_seed(0)
    banks = make_banks(model, run, RETAIN, generator)
    trainer = Trainer(model, run, banks, RETAIN, generator)
    with trainer._training():
        trainer.attack(0, lambda progress: None)
        trainer._backward(trainer.losses(0))
    return [parameter.grad for parameter in trainer.parameters if parameter.grad is not None]


@pytest.mark.parametrize("changes", [{}, {"checkpointing": True}, {"train_method": "xattn"}], ids=str)
def test_micro_batches_train_as_the_whole_batch_does(tiny_model: TextToImage, changes: dict[str, object]) -> None:
    run = RUN.replace(train=changes)
    whole = gradients(tiny_model, run)
    parts = gradients(tiny_model, run.replace(train={"micro_batch": 2}))
    assert len(whole) == len(parts) > 0
    largest = max(gradient.abs().max() for gradient in whole)
    assert max((a - b).abs().max() for a, b in zip(whole, parts, strict=True)) < 1e-4 * largest
    other = gradients(tiny_model, run.replace(train={"seed": 1, "clean_share": 1.0}))
    assert max((a - b).abs().max() for a, b in zip(whole, other, strict=True)) > 1e-2 * largest  # it can fail


def test_micro_batches_in_bf16_differ_by_its_rounding_only(tiny_folder: pathlib.Path) -> None:
    model = load(str(tiny_folder), dtype=torch.bfloat16)
    whole, parts, other = (
        torch.cat([gradient.flatten() for gradient in gradients(model, run)])
        for run in (RUN, RUN.replace(train={"micro_batch": 2}), RUN.replace(train={"clean_share": 1.0}))
    )
    # bf16 has 8 bits: a sum in another order differs by 2^-8 of its largest part.
    assert (parts - whole).norm() < 2e-2 * whole.norm()
    assert (other - whole).norm() > 0.1 * whole.norm()  # it can fail: without clean prompts it is 0.18


@pytest.mark.parametrize("mode", ["loss", "step"])
def test_micro_batches_take_no_more_passes_and_are_small(tiny_model: TextToImage, mode: str) -> None:
    forwards, largest = [], []
    for size in (0, 2):
        denoiser = count_forwards(tiny_model.denoiser)
        batches: list[int] = []
        predict = denoiser.noise_pred

        def note(x_t: Tensor, t: Tensor, conditioning: Tensor, predict=predict, batches=batches) -> Tensor:  # type: ignore[no-untyped-def]
            if torch.is_grad_enabled():
                batches.append(len(x_t))
            return predict(x_t, t, conditioning)

        denoiser.noise_pred = note  # type: ignore[method-assign]
        run = RUN.replace(train={"micro_batch": size, "retain_mode": mode})
        result = train(replace(tiny_model, denoiser=denoiser), run, RETAIN)
        assert result.iterations == 2
        forwards.append(denoiser.forwards)
        largest.append(max(batches))
    assert forwards[0] == forwards[1]
    assert largest == [9 if mode == "loss" else 5, 2]
