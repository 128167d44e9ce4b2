"""The second adversary: learned words for the concept, kept over the iterations and trained on."""

from __future__ import annotations

import pathlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import SUBJECTS, ConceptConfig
from advunlearn.config.training import BankConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.memory.estimate import estimate
from advunlearn.memory.plan import Plan
from advunlearn.models.loading import TextToImage
from advunlearn.models.meta_model import skeleton
from advunlearn.models.text_encoder import embedding_table, encode, frozen, tokenize
from advunlearn.training.adversary import Adversaries, word_config
from advunlearn.training.bank import make_banks
from advunlearn.training.checkpoint import Checkpoints
from advunlearn.training.events import Progress
from advunlearn.training.trainer import TrainResult, train

BANK = BankConfig(trajectories=4, retain_trajectories=2, sampling_steps=4)
ATTACK = AdversaryConfig(steps=2, restarts=2, inversion_tokens=3, inversion_steps=2, inversion_restart_interval=2)
CONFIG = TrainConfig(iterations=5, warmup=1, batch=4, retain_batch=2, lr=1e-4)
RETAINED = ["a photo of a dog"]


def adversaries(
    model: TextToImage, attack: AdversaryConfig = ATTACK, concept: str = "church", **more: Any
) -> Adversaries:
    own, generator = ConceptConfig(concept=concept, **more), torch.Generator().manual_seed(0)
    banks = make_banks(model, own, [], BANK, generator)
    ids = tokenize(model.tokenizer, own.prompts)
    return Adversaries(model, own, ids, attack, banks.concept, torch.Generator().manual_seed(1))


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
    moved = (second["words"] - first["words"]).abs().amax((1, 2)) / own.sigma
    # Two Adam steps of half a deviation: at most one, and hardly less.
    assert ((moved > 0.3) & (moved <= 1.01)).all()
    third, _ = found(model, own, second, 2)  # the second renewal: number 2 / 2 = 1, so the word of that number
    moved = (third["words"] - second["words"]).abs().amax((1, 2)) / own.sigma
    assert moved[1] > 1.5 and (moved[[0, 2]] <= 1.01).all()
    again, _ = found(model, adversaries(model, replace(ATTACK, inversion_restart_interval=0)), second, 2)
    assert ((again["words"] - second["words"]).abs().amax((1, 2)) <= 1.01 * own.sigma).all()


def test_words_of_several_concepts_are_each_their_own(model: TextToImage) -> None:
    own = adversaries(model, concept="church\nsailboat")
    own.bank.only = range(1, 2)
    start = {"words": torch.zeros(6, 1, 192), "prompts": torch.zeros(2, 5, 192)}
    out, _ = found(model, own, start, 1)
    assert not out["words"][:3].any() and out["words"][3:].flatten(1).any(1).all()  # those of the sailboat moved


def token_rows(model: TextToImage, *words: str) -> Tensor:
    """Return the embeddings (N, 1, D) of words of one token."""
    return embedding_table(model.text_encoder)[tokenize(model.tokenizer, words)[:, 1:2]].detach()


def test_samples_are_shared_between_the_adversaries(model: TextToImage) -> None:
    own = adversaries(model, replace(ATTACK, inversion_share=0.25))
    given = {"prompts": torch.randn(2, 5, 192), "words": token_rows(model, "castle", "dog", "cat")}
    numbers = torch.zeros(8, dtype=torch.long)
    context = torch.cat(own.contexts(model.text_encoder, numbers, given, 0))
    assert context.shape == (8, 77, 192)
    # A word stands where the concept's name stood: what is said is "a castle". The words take turns over the batches.
    said = encode(model.text_encoder, tokenize(model.tokenizer, ["a castle", "a dog", "a cat"]))
    assert torch.allclose(context[6:], said[:2], atol=1e-5)
    assert not torch.isclose(context[:6], said[0], atol=1e-3).all(-1).all(-1).any()
    following = own.contexts(model.text_encoder, numbers, given, 1)[-1]
    assert torch.allclose(following, said[[2, 0]], atol=1e-5)
    assert len(torch.cat(own.contexts(model.text_encoder, numbers, {"prompts": given["prompts"]}, 0))) == 8


@pytest.mark.parametrize(("share", "expected"), [(0.5, [0, 1, 0, 1]), (0.25, [0, 0, 0, 1]), (1.0, [1, 1, 1, 1])])
def test_one_sample_has_a_word_as_often_as_its_share_says(
    model: TextToImage, share: float, expected: list[int]
) -> None:
    own = adversaries(model, replace(ATTACK, inversion_share=share))
    given = {"prompts": torch.zeros(1, 5, 192), "words": token_rows(model, "castle", "dog", "cat")}
    castle_dog = encode(model.text_encoder, tokenize(model.tokenizer, ["a castle", "a dog", "a cat"]))

    def worded(turn: int) -> int:
        (context,) = own.contexts(model.text_encoder, torch.zeros(1, dtype=torch.long), given, turn)
        return int((context - castle_dog).abs().amax((1, 2)).min() < 1e-4)

    assert [worded(turn) for turn in range(4)] == expected


@pytest.mark.parametrize(
    ("settings", "numbers", "says"),
    [
        ({"concept": "ink", "kind": "style"}, [0, 1], ["a {}, castle style"] * 2),
        ({"concept": "church\nship", "schedule": "joined"}, [0], ["castle"]),
        ({"concept": "church\nsailboat"}, [0, 1], ["a castle", "a dog"]),
    ],
)
def test_a_word_stands_for_the_name_alone(
    model: TextToImage, settings: dict[str, Any], numbers: list[int], says: list[str]
) -> None:
    own = adversaries(model, replace(ATTACK, inversion_tokens=1, inversion_share=1.0), **settings)
    given = {"prompts": torch.zeros(1, 5, 192), "words": token_rows(model, "castle", "dog")[: own.groups]}
    (context,) = own.contexts(model.text_encoder, torch.tensor(numbers), given, 0)
    asked = [text.format(subject) for text, subject in zip(says, SUBJECTS, strict=False)]
    expected = encode(model.text_encoder, tokenize(model.tokenizer, asked))
    assert torch.allclose(context, expected, atol=1e-5)


def test_words_that_nothing_is_trained_on_are_refused() -> None:
    with pytest.raises(AdvUnlearnError, match="inversion_share is 0, so no sample would use an inverted token"):
        replace(ATTACK, inversion_share=0.0)


def test_the_words_settings_are_those_of_inversion() -> None:
    given = AdversaryConfig(
        radius=1.0, position="add", space="conditioning", start="concept", inversion_tokens=2, inversion_steps=7
    )
    own = word_config(given)
    assert (own.steps, own.update, own.position, own.space, own.radius, own.tokens) == (
        7,
        "adam",
        "replace",
        "embedding",
        0.0,
        1,
    )
    assert given.all_steps == given.steps + 7 and replace(given, inversion_tokens=0).all_steps == given.steps
    assert given.in_mode("fast").all_steps == 1 + 7


def test_a_run_with_words_is_another_and_goes_on_bit_for_bit(tiny_model: TextToImage, tmp_path: pathlib.Path) -> None:
    def run(
        attack: AdversaryConfig = ATTACK, stop: bool = False, config: TrainConfig = CONFIG, **more: Any
    ) -> TrainResult:
        def cancel(progress: Progress) -> None:
            if stop and (progress.iteration, progress.attack_step) == (3, 3):  # amid the words
                raise InterruptedError

        return train(tiny_model, ConceptConfig(), attack, config, BANK, RETAINED, cancel, **more)

    whole, plain = run(), run(replace(ATTACK, inversion_tokens=0), config=replace(CONFIG, iterations=2))
    assert whole.losses[0] == plain.losses[0] and whole.losses[1] != plain.losses[1]  # from the end of the warm-up
    with pytest.raises(InterruptedError):
        run(stop=True, checkpoints=Checkpoints(tmp_path, 50))
    resumed = run(checkpoints=Checkpoints(tmp_path, 50), resume=True)
    assert resumed.losses == whole.losses


def test_the_estimate_counts_the_words(model: TextToImage) -> None:
    shape, cpu = skeleton("miniature", torch.device("cpu"), torch.float32), torch.device("cpu")
    plan = Plan(attack=ATTACK, train=replace(CONFIG, warmup=0), bank=BANK, resolution=64)
    without = replace(plan, attack=replace(ATTACK, inversion_tokens=0))
    with_words, plain = (estimate(shape, p, RETAINED, cpu).forwards for p in (plan, without))
    assert with_words.attack - plain.attack == 3 * ATTACK.inversion_tokens * ATTACK.inversion_steps
    # Each of 3 words draws once, and in both of its steps; 2 F for every 40 draws.
    assert with_words.refresh - plain.refresh == pytest.approx(3 * 3 * 2 / 40)
