"""The prompt adversary on the miniature: the encoding at every position, starting points, bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advunlearn.attacks.pgd import PGDResult, pgd
from advunlearn.attacks.projections import project_l2
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.models.loading import TextToImage
from advunlearn.models.text_encoder import embedding_table, encode
from advunlearn.models.tokenizer import tokenize
from advunlearn.training import trainer
from advunlearn.training.prompt_adversary import PromptAdversary
from advunlearn.training.trainer import train
from advunlearn.training.validation import check_attack

PROMPTS = ("a sailboat", "a church")  # a, sail, boat; a, church


def attacked(model: TextToImage, prompts: tuple[str, ...] = PROMPTS, **settings: object) -> PromptAdversary:
    config = AdversaryConfig(**settings)  # type: ignore[arg-type]
    ids = tokenize(model.tokenizer, prompts)
    generator = torch.Generator().manual_seed(0)
    return PromptAdversary(model.text_encoder, model.tokenizer, prompts, ids, config, generator)


def token(model: TextToImage, *words: str) -> list[int]:
    return [i for word in words for i in model.tokenizer(word).input_ids[1:-1]]


@pytest.mark.parametrize(
    ("position", "order"),
    [
        ("prefix", "red dog a sail boat"),
        ("suffix", "a sail boat red dog"),
        ("middle", "a red dog sail boat"),
        ("interleaved", "a red sail dog boat"),
        ("per_k", "red a sail dog boat"),
        ("replace", "red dog"),
    ],
)
def test_embeddings_of_real_tokens_stand_where_the_tokens_would(model: TextToImage, position: str, order: str) -> None:
    prompts = attacked(model, tokens=2, position=position, per_k=2)
    found = prompts.table[token(model, "red", "dog")][None]
    a, sail, boat = token(model, "a sailboat")
    names = dict(zip(("a", "sail", "boat", "red", "dog"), (a, sail, boat, *token(model, "red", "dog")), strict=True))
    ids = tokenize(model.tokenizer, ["a sailboat"])
    ids[0, 1:] = model.tokenizer.eos_token_id
    ids[0, 1 : 1 + len(order.split())] = torch.tensor([names[word] for word in order.split()])
    with torch.no_grad():
        context = prompts.encode_embeddings(model.text_encoder, torch.tensor([0]), found)
        assert torch.equal(context, encode(model.text_encoder, ids))


def test_what_is_added_moves_each_token_and_none_that_a_shorter_prompt_lacks(model: TextToImage) -> None:
    prompts, encoder = attacked(model, position="add"), model.text_encoder
    assert prompts.shape == (3, 192)  # a, sail, boat
    clean, both = encode(encoder, tokenize(model.tokenizer, PROMPTS)), torch.tensor([0, 1])
    third = torch.zeros(2, 3, 192)
    third[:, 2] = 1.0
    with torch.no_grad():
        assert torch.equal(prompts.encode_embeddings(encoder, both, torch.zeros(2, 3, 192)), clean)
        moved = prompts.encode_embeddings(encoder, both, third)
        assert not torch.allclose(moved[0], clean[0]) and torch.equal(moved[1], clean[1])
        dogs = prompts.table[token(model, "red", "dog", "dog")] - prompts.table[token(model, "a sailboat")]
        turned = prompts.encode_embeddings(encoder, both[:1], dogs[None])
        assert torch.allclose(turned, encode(encoder, tokenize(model.tokenizer, ["red dog dog"])), atol=1e-5)


def test_in_conditioning_space_the_encoders_output_is_moved_and_measured(model: TextToImage) -> None:
    prompts = attacked(model, space="conditioning", position="add", start="random")
    clean = encode(model.text_encoder, tokenize(model.tokenizer, PROMPTS)).detach()
    assert prompts.shape == (77, 192) and prompts.sigma == pytest.approx(clean.std().item())
    start = prompts.starting_embeddings(torch.tensor([0, 1, 1]))
    assert start.std().item() == pytest.approx(clean.std().item(), rel=0.02)
    context = prompts.encode_embeddings(model.text_encoder, torch.tensor([1]), start[:1])
    # Not equal in the last bit on every processor: one prompt is encoded here, two above.
    assert torch.allclose(context, clean[1:] + start[:1], atol=1e-5)


def test_starts_from_the_concept_and_from_a_text(model: TextToImage) -> None:
    numbers = torch.tensor([1, 0])
    table = embedding_table(model.text_encoder)
    own = attacked(model, tokens=3, start="concept").starting_embeddings(numbers)
    assert torch.equal(own[0], table[token(model, "a", "church", "a")])  # two tokens, repeated
    assert torch.equal(own[1], table[token(model, "a sailboat")])
    text = attacked(model, tokens=3, start="text", start_text="sailboat").starting_embeddings(numbers)
    assert torch.equal(text, table[token(model, "sailboat") + token(model, "sailboat")[:1]].expand(2, 3, 192))
    assert not attacked(model, position="add", start="concept").starting_embeddings(numbers).any()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"start": "text"}, "start_text is empty"),
        ({"space": "conditioning"}, "position is prefix, but the encoder's output can only be added to"),
        ({"space": "conditioning", "position": "add"}, "start is token, but the encoder's output has no tokens"),
        ({"start": "text", "start_text": "a red dog", "tokens": 2}, "has 3 tokens and the attack 2; .* raise tokens"),
        ({"start": "text", "start_text": "a big red dog", "position": "add"}, "no more tokens than the concept has"),
    ],
)
def test_what_does_not_go_together_is_refused(model: TextToImage, settings: dict[str, object], says: str) -> None:
    with pytest.raises(AdvUnlearnError, match=says):
        check_attack(model.tokenizer, PROMPTS, AdversaryConfig(**settings))  # type: ignore[arg-type]


def test_projection_on_the_l2_ball_takes_each_row_as_one_vector() -> None:
    x = torch.tensor([[[3.0], [4.0]], [[0.3], [0.4]]])  # of length 5 and 0.5
    near = project_l2(x, torch.zeros(2, 2, 1), 1.0)
    assert near.flatten().tolist() == pytest.approx([0.6, 0.8, 0.3, 0.4])
    assert torch.equal(project_l2(x, torch.zeros(2, 2, 1), 0.0), x)
    assert project_l2(x[:1], torch.tensor([[[3.0], [0.0]]]), 2.0).flatten().tolist() == pytest.approx([3.0, 2.0])


@pytest.mark.parametrize(("norm", "end"), [("linf", 0.5), ("l2", 0.5 / 2**0.5)])
def test_the_norm_of_the_ball(norm: str, end: float) -> None:
    # One signed step from 0 to (1, 1) and back to 0.25 of sigma 2: the square's corner, or the circle's diagonal point.
    config = AdversaryConfig(steps=1, step_size=0.5, radius=0.25, norm=norm)  # type: ignore[arg-type]
    found = pgd(lambda x: (x - 9).square().flatten(1).sum(1), torch.zeros(1, 1, 2), config, sigma=2.0).embeddings
    assert found.flatten().tolist() == pytest.approx([end, end])


def test_attacks_that_go_on_stay_in_the_ball_of_the_first(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    starts, found = [], []

    def spy(objective: Any, start: Tensor, *rest: Any) -> PGDResult:
        starts.append(start.clone())
        found.append(pgd(objective, start, *rest).embeddings)
        return PGDResult(found[-1], [0.0])

    monkeypatch.setattr(trainer, "pgd", spy)
    attack = AdversaryConfig(steps=2, step_size=0.4, restarts=2, tokens=1, start="latest", radius=0.5)
    config = TrainConfig(iterations=4, warmup=0, batch=2, retain_weight=0.0)
    train(
        model,
        RunConfig(
            concept=ConceptConfig(), attack=attack, train=config, bank=BankConfig(trajectories=2, sampling_steps=2)
        ),
    )
    bound = 0.5 * embedding_table(model.text_encoder).std().item()
    moved = [(x - starts[0]).abs().max().item() for x in found]
    assert len(moved) == 4 and all(torch.equal(a, b) for a, b in zip(starts[1:], found, strict=False))
    assert max(moved) == pytest.approx(bound, rel=1e-4) and moved[-1] > 0  # four steps go further than the ball


POSITIONS = ("prefix", "suffix", "middle", "interleaved", "per_k", "replace", "add")


@pytest.mark.parametrize(
    "settings",
    [
        *({"position": p} for p in POSITIONS),
        {"position": "add", "space": "conditioning", "start": "random", "step_size": 0.005},
    ],
)
def test_every_attack_lowers_its_loss_and_trains_the_encoder(model: TextToImage, settings: dict[str, object]) -> None:
    concept, bank = ConceptConfig(concept="sailboat\nchurch"), BankConfig(trajectories=2, sampling_steps=2)
    quick = {"steps": 5, "step_size": 0.05, "restarts": 2, "resample": "iteration"}
    attack = AdversaryConfig(**{**quick, **settings})  # type: ignore[arg-type]
    config = TrainConfig(iterations=1, warmup=0, batch=2, retain_weight=0.0, clean_share=0.0, lr=1e-4)
    result = train(model, RunConfig(concept=concept, attack=attack, train=config, bank=bank))
    assert result.losses[0]["attack_end"] < result.losses[0]["attack_start"]
    weights = zip(model.text_encoder.parameters(), result.encoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in weights)  # what was found brings gradients to the encoder
