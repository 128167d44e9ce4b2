"""The inversion adversary: learned tokens for the concept, improved over attacks and trained on."""

from __future__ import annotations

import pathlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import SUBJECTS, ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.memory.estimate import estimate
from advunlearn.memory.plan import Plan
from advunlearn.models.loading import TextToImage
from advunlearn.models.meta_model import skeleton
from advunlearn.models.text_encoder import embedding_table, encode, frozen
from advunlearn.models.tokenizer import tokenize
from advunlearn.training.adversary import AdversarialState, divide
from advunlearn.training.bank import make_banks
from advunlearn.training.checkpoint import Checkpoints
from advunlearn.training.events import Progress
from advunlearn.training.inversion_adversary import InversionAdversary, inversion_config
from advunlearn.training.trainer import TrainResult, make_adversaries, train

BANK = BankConfig(trajectories=4, retain_trajectories=2, sampling_steps=4)
ATTACK = AdversaryConfig(steps=2, restarts=2, inversion_tokens=3, inversion_steps=2, inversion_restart_interval=2)
CONFIG = TrainConfig(iterations=5, warmup=1, batch=4, retain_batch=2, lr=1e-4)
RETAINED = ["a photo of a dog"]


def make_adversary(
    model: TextToImage, attack: AdversaryConfig = ATTACK, concept: str = "church", **more: Any
) -> InversionAdversary:
    generator = torch.Generator().manual_seed(1)
    settings = ConceptConfig(concept=concept, **more)
    return InversionAdversary(model.text_encoder, model.tokenizer, settings, attack, generator)


def find(
    model: TextToImage,
    adversary: InversionAdversary,
    state: AdversarialState,
    number: int,
    prompts: range | None = None,
) -> tuple[Tensor, list[int]]:
    """Run an attack on the original model; return the tokens (N, 1, D) and the steps that were reported."""
    concept = ConceptConfig(concept="church" if adversary.groups == 1 else "church\nsailboat")
    bank = make_banks(model, RunConfig(concept=concept, bank=BANK), [], torch.Generator().manual_seed(0)).concept
    steps: list[int] = []
    with frozen(model.text_encoder, *model.denoiser.modules()):
        found, losses = adversary.find(
            model.text_encoder,
            model.denoiser,
            lambda count: bank.draw(count, prompts),
            state,
            number,
            lambda step, loss: steps.append(step),
        )
    assert len(losses) == len(steps)
    return found["tokens"], steps


def moved(before: Tensor, after: Tensor, adversary: InversionAdversary) -> Tensor:
    """Return how far each token moved, in standard deviations of the embedding table."""
    return (after - before).abs().amax((1, 2)) / adversary.sigma


def test_tokens_improve_over_attacks_and_the_oldest_restarts(model: TextToImage) -> None:
    adversary = make_adversary(model)
    first, steps = find(model, adversary, {}, 0)
    assert steps == [1, 2] and first.shape == (3, 1, 192)
    second, _ = find(model, adversary, {"tokens": first}, 1)
    # Two Adam steps of half a deviation: at most one, and hardly less.
    assert ((moved(first, second, adversary) > 0.3) & (moved(first, second, adversary) <= 1.01)).all()
    third, _ = find(model, adversary, {"tokens": second}, 2)  # the second restart, 2 / 2 = 1: the token with that index
    assert moved(second, third, adversary)[1] > 1.5 and (moved(second, third, adversary)[[0, 2]] <= 1.01).all()
    never = make_adversary(model, replace(ATTACK, inversion_restart_interval=0))
    fourth, _ = find(model, never, {"tokens": second}, 2)
    assert (moved(second, fourth, never) <= 1.01).all()


def test_each_concept_has_its_own_tokens(model: TextToImage) -> None:
    adversary = make_adversary(model, concept="church\nsailboat")
    tokens, _ = find(model, adversary, {"tokens": torch.zeros(6, 1, 192)}, 1, range(1, 2))
    assert not tokens[:3].any() and tokens[3:].flatten(1).any(1).all()  # only those of the sailboat moved


def token_rows(model: TextToImage, *words: str) -> Tensor:
    """Return the embeddings (N, 1, D) of words of one token."""
    return embedding_table(model.text_encoder)[tokenize(model.tokenizer, words)[:, 1:2]].detach()


def test_a_batch_is_divided_among_the_adversaries(model: TextToImage) -> None:
    run = RunConfig(attack=replace(ATTACK, inversion_share=0.25), train=replace(CONFIG, clean_share=0.2))
    adversaries = make_adversaries(model, run, torch.Generator())
    assert [adversary.name for adversary in adversaries] == ["clean", "prompt", "inversion"]
    # Of 10 samples 2 are clean; of the other 8 a quarter is the inversion adversary's. Its tokens take turns.
    assert divide(adversaries, 10, 0) == [range(2), range(6), range(2)]
    assert divide(adversaries, 10, 1) == [range(2), range(6), range(2, 4)]


@pytest.mark.parametrize(("share", "expected"), [(0.5, [0, 1, 0, 1]), (0.25, [0, 0, 0, 1]), (1.0, [1, 1, 1, 1])])
def test_of_one_sample_each_turn_the_adversary_gets_its_share(
    model: TextToImage, share: float, expected: list[int]
) -> None:
    adversary = make_adversary(model, replace(ATTACK, inversion_share=share))
    assert [len(adversary.take(1, turn)) for turn in range(4)] == expected


def test_tokens_take_turns(model: TextToImage) -> None:
    adversary = make_adversary(model)
    state = {"tokens": token_rows(model, "castle", "dog", "cat")}
    conditioning = adversary.encode(model.text_encoder, torch.zeros(2, dtype=torch.long), torch.tensor([2, 3]), state)
    expected = encode(model.text_encoder, tokenize(model.tokenizer, ["a cat", "a castle"]))
    assert torch.allclose(conditioning, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "prompts", "texts"),
    [
        ({"concept": "ink", "kind": "style"}, [0, 1], ["a {}, castle style"] * 2),
        ({"concept": "church\nship", "schedule": "joined"}, [0], ["castle"]),
        ({"concept": "church\nsailboat"}, [0, 1], ["a castle", "a dog"]),
    ],
)
def test_a_token_stands_in_place_of_the_name(
    model: TextToImage, settings: dict[str, Any], prompts: list[int], texts: list[str]
) -> None:
    adversary = make_adversary(model, replace(ATTACK, inversion_tokens=1), **settings)
    state = {"tokens": token_rows(model, "castle", "dog")[: adversary.groups]}
    rows = torch.tensor(prompts)
    conditioning = adversary.encode(model.text_encoder, rows, torch.arange(len(rows)), state)
    filled = [text.format(subject) for text, subject in zip(texts, SUBJECTS, strict=False)]
    expected = encode(model.text_encoder, tokenize(model.tokenizer, filled))
    assert torch.allclose(conditioning, expected, atol=1e-5)


def test_tokens_that_no_sample_uses_are_refused() -> None:
    with pytest.raises(AdvUnlearnError, match="inversion_share is 0, so no sample would use an inverted token"):
        replace(ATTACK, inversion_share=0.0)


def test_the_settings_are_those_of_concept_inversion() -> None:
    given = AdversaryConfig(
        radius=1.0, position="add", space="conditioning", start="concept", inversion_tokens=2, inversion_steps=7
    )
    own = inversion_config(given)
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


def test_a_run_with_inversion_differs_and_resumes_bit_for_bit(tiny_model: TextToImage, tmp_path: pathlib.Path) -> None:
    def run(
        attack: AdversaryConfig = ATTACK, stop: bool = False, config: TrainConfig = CONFIG, **more: Any
    ) -> TrainResult:
        def cancel(progress: Progress) -> None:
            if stop and (progress.iteration, progress.attack_step) == (3, 3):  # in the second adversary's attack
                raise InterruptedError

        return train(
            tiny_model,
            RunConfig(concept=ConceptConfig(), attack=attack, train=config, bank=BANK),
            RETAINED,
            callback=cancel,
            **more,
        )

    whole, plain = run(), run(replace(ATTACK, inversion_tokens=0), config=replace(CONFIG, iterations=2))
    assert whole.losses[0] == plain.losses[0] and whole.losses[1] != plain.losses[1]  # from the end of the warm-up
    with pytest.raises(InterruptedError):
        run(stop=True, checkpoints=Checkpoints(tmp_path, 50))
    resumed = run(checkpoints=Checkpoints(tmp_path, 50), resume=True)
    assert resumed.losses == whole.losses


@pytest.mark.slow
def test_the_estimate_counts_the_inversion_adversary(model: TextToImage) -> None:
    shape, cpu = skeleton("miniature", torch.device("cpu"), torch.float32), torch.device("cpu")
    plan = Plan(run=RunConfig(attack=ATTACK, train=replace(CONFIG, warmup=0), bank=BANK), resolution=64)
    without = replace(plan, run=plan.run.replace(attack={"inversion_tokens": 0}))
    with_words, plain = (estimate(shape, p, RETAINED, cpu).forwards for p in (plan, without))
    assert with_words.attack - plain.attack == 3 * ATTACK.inversion_tokens * ATTACK.inversion_steps
