"""The second adversary: learned words for the concept, kept over the iterations and trained on."""

from __future__ import annotations

import pathlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from advunlearn.adversary import Adversaries, word_config
from advunlearn.checkpoint import Checkpoints
from advunlearn.config import AttackConfig, BankConfig, ConceptConfig, TrainConfig
from advunlearn.estimate import estimate
from advunlearn.events import Progress
from advunlearn.models import TextToImage
from advunlearn.plan import Plan
from advunlearn.skeleton import skeleton
from advunlearn.text_encoder import encode, frozen, tokenize
from advunlearn.trainer import TrainResult, train
from advunlearn.trajectories import make_banks

BANK = BankConfig(trajectories=4, retain_trajectories=2, sampling_steps=4)
ATTACK = AttackConfig(steps=2, restarts=2, words=3, word_steps=2, word_renewal=2)
CONFIG = TrainConfig(iterations=5, warmup=1, batch=4, retain_batch=2, lr=1e-4)
RETAINED = ["a photo of a dog"]


def adversaries(model: TextToImage, attack: AttackConfig = ATTACK, concept: str = "church") -> Adversaries:
    own, generator = ConceptConfig(concept=concept), torch.Generator().manual_seed(0)
    banks = make_banks(model, own, [], BANK, generator)
    ids = tokenize(model.tokenizer, own.prompts)
    return Adversaries(model, own.prompts, ids, attack, banks.concept, torch.Generator().manual_seed(1))


def found(model: TextToImage, own: Adversaries, last: Any, number: int) -> tuple[dict[str, Tensor], list[int]]:
    steps: list[int] = []
    with frozen(model.text_encoder, *model.denoiser.modules()):
        out, _ = own.find(
            model.text_encoder, model.denoiser, last, number, on_step=lambda step, loss: steps.append(step)
        )
    return out, steps


def test_words_are_kept_and_go_on_and_the_oldest_starts_anew(model: TextToImage) -> None:
    own = adversaries(model)
    first, steps = found(model, own, None, 0)
    assert steps == [1, 2, 3, 4] and first["words"].shape == (3, 1, 192) and first["prompts"].shape == (2, 5, 192)
    second, _ = found(model, own, first, 1)
    moved = (second["words"] - first["words"]).abs().amax((1, 2)) / own.words.sigma
    # Two Adam steps of half a deviation: at most one, and hardly less.
    assert ((moved > 0.3) & (moved <= 1.01)).all()
    third, _ = found(model, own, second, 2)  # the second renewal: number 2 / 2 = 1, so the word of that number
    moved = (third["words"] - second["words"]).abs().amax((1, 2)) / own.words.sigma
    assert moved[1] > 1.5 and (moved[[0, 2]] <= 1.01).all()
    again, _ = found(model, adversaries(model, replace(ATTACK, word_renewal=0)), second, 2)
    assert ((again["words"] - second["words"]).abs().amax((1, 2)) <= 1.01 * own.words.sigma).all()


def test_words_of_several_concepts_are_each_their_own(model: TextToImage) -> None:
    own = adversaries(model, concept="church\nsailboat")
    own.bank.only = range(1, 2)
    start = {"words": torch.zeros(6, 1, 192), "prompts": torch.zeros(2, 5, 192)}
    out, _ = found(model, own, start, 1)
    assert not out["words"][:3].any() and out["words"][3:].flatten(1).any(1).all()  # those of the sailboat moved


def test_samples_are_shared_between_the_adversaries(model: TextToImage) -> None:
    own = adversaries(model, replace(ATTACK, word_share=0.25))
    table = own.words.table.float()
    word = table[tokenize(model.tokenizer, ["castle"])[0, 1]].expand(3, 1, -1)
    given = {"prompts": torch.randn(2, 5, 192), "words": word}
    numbers = torch.zeros(8, dtype=torch.long)
    context = torch.cat(own.contexts(model.text_encoder, numbers, given))
    assert context.shape == (8, 77, 192)
    castle = encode(model.text_encoder, tokenize(model.tokenizer, ["castle"]))
    assert torch.allclose(context[6:], castle.expand(2, -1, -1), atol=1e-5)  # the word stands in the concept's place
    assert not torch.isclose(context[:6], castle, atol=1e-3).all(-1).all(-1).any()
    assert len(torch.cat(own.contexts(model.text_encoder, numbers, {"prompts": given["prompts"]}))) == 8


def test_the_words_settings_are_those_of_inversion() -> None:
    given = AttackConfig(radius=1.0, position="add", space="conditioning", start="concept", words=2, word_steps=7)
    own = word_config(given)
    assert (own.steps, own.update, own.position, own.space, own.radius, own.tokens) == (
        7, "adam", "replace", "embedding", 0.0, 1
    )  # fmt: skip
    assert given.all_steps == given.steps + 7 and replace(given, words=0).all_steps == given.steps
    assert given.in_mode("fast").all_steps == 1 + 7


def test_a_run_with_words_is_another_goes_on_bit_for_bit_and_its_losses_fall(
    model: TextToImage, tmp_path: pathlib.Path
) -> None:
    def run(attack: AttackConfig = ATTACK, stop: bool = False, **more: Any) -> TrainResult:
        def cancel(progress: Progress) -> None:
            if stop and (progress.iteration, progress.attack_step) == (3, 3):  # amid the words
                raise InterruptedError

        return train(model, ConceptConfig(), attack, CONFIG, BANK, RETAINED, cancel, **more)

    whole, plain = run(), run(replace(ATTACK, words=0))
    assert whole.losses[0] == plain.losses[0] and whole.losses[1] != plain.losses[1]  # from the end of the warm-up
    with pytest.raises(InterruptedError):
        run(stop=True, checkpoints=Checkpoints(tmp_path, 50))
    resumed = run(checkpoints=Checkpoints(tmp_path, 50), resume=True)
    assert resumed.losses == whole.losses


def test_the_estimate_counts_the_words(model: TextToImage) -> None:
    shape, cpu = skeleton("miniature", torch.device("cpu"), torch.float32), torch.device("cpu")
    plan = Plan(attack=ATTACK, train=replace(CONFIG, warmup=0), bank=BANK, resolution=64)
    without = replace(plan, attack=replace(ATTACK, words=0))
    with_words, plain = (estimate(shape, p, RETAINED, cpu).forwards for p in (plan, without))
    assert with_words.attack - plain.attack == 3 * ATTACK.words * ATTACK.word_steps
    # Each of 3 words draws once, and in both of its steps; 2 F for every 4 draws.
    assert with_words.refresh - plain.refresh == pytest.approx(3 * 3 * 2 / 4)
