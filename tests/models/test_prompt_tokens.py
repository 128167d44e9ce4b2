"""Positions of slots, worked out by hand: in plain ids, in words of several tokens, and at the encoder's limit."""

from __future__ import annotations

import pytest
import torch

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.models.loading import TextToImage
from advunlearn.models.prompt_tokens import check_prompt_length, insert_slots, num_content_before, replace_content
from advunlearn.models.tokenizer import tokenize
from advunlearn.training.trainer import train

B, E, X = 90, 99, 7  # start, end of text, placeholder
FIVE, ONE = [B, 11, 12, 13, 14, 15, E, E, E], [B, 21, E, E, E, E, E, E, E]


@pytest.mark.parametrize(
    ("position", "five", "one"),
    [
        ("prefix", [B, X, X, 11, 12, 13, 14, 15, E], [B, X, X, 21, E, E, E, E, E]),
        ("suffix", [B, 11, 12, 13, 14, 15, X, X, E], [B, 21, X, X, E, E, E, E, E]),
        ("middle", [B, 11, 12, X, X, 13, 14, 15, E], [B, X, X, 21, E, E, E, E, E]),
        # After 5/3 and 10/3 of five tokens, after 1/3 and 2/3 of one, rounded down.
        ("interleaved", [B, 11, X, 12, 13, X, 14, 15, E], [B, X, X, 21, E, E, E, E, E]),
        # In front of the first and the fourth token; slots left over are at the end.
        ("per_k", [B, X, 11, 12, 13, X, 14, 15, E], [B, X, 21, X, E, E, E, E, E]),
    ],
)
def test_two_tokens_among_five_and_one(position: str, five: list[int], one: list[int]) -> None:
    ids, size = torch.tensor([FIVE, ONE]), torch.tensor([5, 1])
    longer, positions = insert_slots(ids, num_content_before(size, 2, position, 3), E, X)  # type: ignore[arg-type]
    assert longer.tolist() == [five, one]
    assert positions.tolist() == [[i for i, token in enumerate(row) if token == X] for row in (five, one)]


def test_in_place_of_the_content_there_is_nothing_else() -> None:
    replaced, positions = replace_content(torch.tensor([FIVE, ONE]), 2, E, X)
    assert replaced.tolist() == [[B, X, X, E, E, E, E, E, E]] * 2 and positions.tolist() == [[1, 2]] * 2


@pytest.mark.parametrize("position", ["prefix", "suffix", "middle", "interleaved", "per_k"])
@pytest.mark.parametrize("full", [70, 75])
def test_a_prompt_that_fills_the_encoder_keeps_what_has_room(model: TextToImage, position: str, full: int) -> None:
    tokenizer, prompt = model.tokenizer, "dog " * 69 + "sailboat " + "dog " * (full - 71)
    ids = tokenize(tokenizer, [prompt])
    size = torch.tensor([full])
    longer, positions = insert_slots(ids, num_content_before(size, 5, position), tokenizer.eos_token_id, X)  # type: ignore[arg-type]
    inserted = set(positions[0].tolist())
    content = [token for i, token in enumerate(longer[0].tolist()) if i not in inserted]
    assert len(inserted) == 5 and longer[0, list(inserted)].eq(X).all() and longer[0, -1] == tokenizer.eos_token_id
    assert content[:71] == ids[0, :71].tolist() and content[71:] == [tokenizer.eos_token_id]  # 70 tokens and the ends


def test_a_prompt_without_room_is_refused_and_says_how_long_it_is(model: TextToImage) -> None:
    fits = "sailboat " * 35  # two tokens each
    check_prompt_length(model.tokenizer, [fits, "a dog"], 5)
    with pytest.raises(AdvUnlearnError, match="has 71 tokens; the text encoder takes 75 of prompt and 5 adversarial"):
        check_prompt_length(model.tokenizer, ["a dog", fits + "dog"], 5)
    check_prompt_length(model.tokenizer, [fits + "dog " * 5])
    with pytest.raises(AdvUnlearnError, match="has 76 tokens; the text encoder takes 75; shorten it"):
        check_prompt_length(model.tokenizer, [fits + "dog " * 6])


def test_training_refuses_it_before_anything_is_sampled(model: TextToImage) -> None:
    concept = ConceptConfig(concept="sailboat " * 36, kind="prompt")  # 72 tokens
    config, bank = TrainConfig(iterations=1, warmup=0, retain_weight=0.0), BankConfig(trajectories=1, sampling_steps=2)

    def run(position: str) -> None:
        attack = AdversaryConfig(steps=1, position=position)  # type: ignore[arg-type]
        train(
            model,
            RunConfig(concept=concept, attack=attack, train=config, bank=bank),
            callback=lambda progress: pytest.fail("sampled"),
        )

    with pytest.raises(AdvUnlearnError, match="has 72 tokens"):
        run("suffix")
    with pytest.raises(pytest.fail.Exception, match="sampled"):  # what inserts nothing needs no room
        run("add")
