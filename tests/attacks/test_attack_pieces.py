"""The parts of the attacks, against values derived by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from attack_table import CPU, TINY, attacked

from advunlearn.attacks import mma, ring_a_bell
from advunlearn.attacks.base import AttackContext
from advunlearn.attacks.prompt_slots import content_tokens, interleaved_slots, make_slots, without_name
from advunlearn.attacks.registry import attack_settings, make_attack
from advunlearn.attacks.search_spaces import NearestTokens, TokenSimplex
from advunlearn.attacks.synonym_search import replace_name
from advunlearn.attacks.unlearndiffatk import find_level
from advunlearn.attacks.vocabulary import (
    exclude_words,
    find_nearest,
    normalize_rows,
    replace_untypable,
    search_vocabulary,
    typed_vocabulary,
)
from advunlearn.config import attacks as attack_config
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.models.loading import TextToImage
from advunlearn.models.text_encoder import embedding_table
from advunlearn.prompts import synonyms


def test_places_in_prompts_by_hand(model: TextToImage) -> None:
    bos, eos = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    slots = make_slots([[7, 8, 9], [7]], [[0, 2, 3], [1, 1]], model.tokenizer, CPU)
    assert slots.ids[0, :9].tolist() == [bos, 0, 7, 8, 0, 9, 0, eos, eos] and slots.at.tolist() == [
        [1, 4, 6],
        [2, 3, 77],
    ]
    filled = slots.fill(torch.tensor([[21, 22, 23], [31, 32, 33]]))
    assert filled[0, :9].tolist() == [bos, 21, 7, 8, 22, 9, 23, eos, eos]
    assert filled[1, :6].tolist() == [bos, 7, 31, 32, eos, eos]
    full = make_slots([[7] * 80], [[0, 80]], model.tokenizer, CPU)
    assert full.ids.shape == (1, 77) and full.ids[0, -1] == eos and full.at.tolist() == [[1, 77]]


def test_places_are_encoded_as_typed_tokens(context: AttackContext) -> None:
    slots = make_slots([[700, 701], [702]], [[0, 1], [1]], context.tokenizer, CPU)
    tokens = torch.tensor([[800, 801], [802, 0]])
    with torch.no_grad():
        conditioning = slots.encode(context.encoder, embedding_table(context.encoder)[tokens])
        direct = context.encoder(slots.fill(tokens)).last_hidden_state
        short = slots.truncate(4).encode(context.encoder, embedding_table(context.encoder)[tokens])
    assert torch.allclose(conditioning, direct, atol=1e-6)
    assert torch.allclose(short, conditioning[:, :4], atol=1e-5)  # the encoder is causal


def test_every_seed_and_every_prefix_is_another(context: AttackContext) -> None:
    seeds = make_attack("seed_search", context, attack_settings("seed_search", EvaluateConfig()), 1)
    prefixes = make_attack("random_prefix", context, attack_settings("random_prefix", EvaluateConfig()), 1)
    noise, texts = [], []
    for _ in range(3):
        noise.append(str(seeds.result().noise))
        texts.append(prefixes.prompts()[0]["prompt"])
        seeds.step(), prefixes.step()
    assert len(set(noise)) == len(set(texts)) == 3


def test_p4d_k_puts_a_token_in_front_of_every_third_word(context: AttackContext) -> None:
    attack, _ = attacked("p4d_k", context, steps=1)
    places = attack.slots.at.tolist()  # type: ignore[attr-defined]
    # "a photo of a church" has five words, "a church" two.
    assert places == [[1, 5], [1, 77]]
    assert (
        attack.prompts()[0]["prompt"].split()[1:4] == ["a", "photo", "of"] and len(attack.prompts()[1]["tokens"]) == 1
    )


def test_no_place_is_inside_a_word(model: TextToImage) -> None:
    """A sailboat is two tokens, and a comma is part of the word before it."""
    tokenizer, prompt = model.tokenizer, "a sailboat, on a cumulonimbus cloud"
    pieces = tokenizer("sailboat,").input_ids[1:-1]
    assert len(pieces) == 3 and len(tokenizer("cumulonimbus").input_ids) > 3
    slots = interleaved_slots([prompt, "a dog or"], 2, tokenizer, CPU)
    dog = tokenizer("dog").input_ids[1]
    said = [tokenizer.decode(row) for row in content_tokens(slots.fill(torch.full_like(slots.at, dog)), tokenizer)]
    assert said[0].replace(" ,", ",") == "dog a sailboat, dog on a dog cumulonimbus cloud dog"
    assert said[1] == "dog a dog dog or" and slots.at[0, :2].tolist() == [1, 6]


def test_projection_to_the_nearest_tokens_goes_by_angle() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 10.0], [-1.0, 0.0]])
    points = torch.tensor([[[5.0, 1.0], [0.1, 0.2]], [[-0.1, 0.05], [0.0, -3.0]]])
    assert find_nearest(points, normalize_rows(rows))[0].tolist() == [0, 1]
    assert find_nearest(torch.tensor([-0.1, 0.05]), normalize_rows(rows)).item() == 2


def test_the_gradient_at_the_nearest_token_moves_the_free_embedding() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    search = NearestTokens(table, torch.tensor([0, 1]), 1, 1, torch.Generator().manual_seed(0))
    search.parameter.data = torch.tensor([[[0.9, 0.4]]])
    x = search.embeddings()
    assert x.tolist() == [[[1.0, 0.0]]]
    (x * torch.tensor([2.0, -3.0])).sum().backward()
    assert search.parameter.grad is not None and search.parameter.grad.tolist() == [[[2.0, -3.0]]]


def test_repair_takes_the_nearest_token_that_can_be_typed() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.2, 0.9]])
    assert replace_untypable(torch.tensor([[0, 2], [3, 1]]), table, torch.tensor([0, 1])).tolist() == [[0, 0], [1, 1]]


def test_with_the_whole_vocabulary_what_is_found_is_repaired(context: AttackContext) -> None:
    attack, _ = attacked("pez", context, vocabulary="all", steps=2)
    typed = set(typed_vocabulary(context.tokenizer).tolist())
    assert not set(attack.search.token_ids().flatten().tolist()) <= typed  # type: ignore[attr-defined]
    assert set(attack.token_ids().flatten().tolist()) <= typed  # type: ignore[attr-defined]
    assert all(t["exact"] for t in attack.prompts())


def test_unlearndiffatk_finds_what_can_be_typed_unless_told_to_search_everything(context: AttackContext) -> None:
    random = {"tokens": 12, "steps": 0, "start": "random"}
    texts = {
        kind: attacked("unlearndiffatk", context, vocabulary=kind, **random)[0].prompts() for kind in ("typed", "all")
    }
    assert all(t["exact"] for t in texts["typed"]) and not all(t["exact"] for t in texts["all"])


def test_with_the_whole_vocabulary_the_text_counts(context: AttackContext) -> None:
    # A rate at which some of the chosen tokens cannot be typed.
    attack, _ = attacked("unlearndiffatk", context, vocabulary="all", tokens=5, lr=0.5)
    rows, output = attack.prompts(), attack.result()
    assert not all(row["exact"] for row in rows)
    assert torch.equal(output.conditioning, context.encode([row["prompt"] for row in rows]))
    with torch.no_grad():
        searched = attack.slots.encode(context.encoder, output.embeddings)  # type: ignore[attr-defined]
    same = [torch.allclose(*pair, atol=1e-4) for pair in zip(searched, output.conditioning, strict=True)]
    assert same == [row["exact"] for row in rows]


def test_what_can_be_typed(model: TextToImage) -> None:
    tokens = model.tokenizer.convert_ids_to_tokens(typed_vocabulary(model.tokenizer).tolist())
    assert "church</w>" in tokens and all(t.endswith("</w>") for t in tokens)
    assert set(typed_vocabulary(model.tokenizer).tolist()) < set(search_vocabulary(model.tokenizer).tolist())


def test_forbidden_words_are_no_part_of_any_token(model: TextToImage) -> None:
    left = exclude_words(typed_vocabulary(model.tokenizer), ["church", "an"], model.tokenizer)
    words = model.tokenizer.convert_ids_to_tokens(left.tolist())
    assert "dog</w>" in words and not any("an" in w or "church" in w for w in words)


def test_mma_says_no_forbidden_word_for_a_token_that_cannot_be_typed(context: AttackContext) -> None:
    """Searched over all tokens, a piece of a word stands for its nearest typed one, which may be the word itself."""
    given = TINY["mma"] | {"vocabulary": "all", "forbidden": "castle"}
    attack = make_attack("mma", context, attack_settings("mma", EvaluateConfig(), given), 1)
    assert isinstance(attack, mma.MMA)
    everything = attack.allowed.view(-1, 1)
    plain = replace_untypable(
        everything, embedding_table(context.encoder).detach(), typed_vocabulary(context.tokenizer)
    )
    said = {"castle" in attack.context.tokenizer.decode(row) for row in plain}
    assert said == {True, False}  # without the mask some would be said
    assert not any("castle" in attack.context.tokenizer.decode(row) for row in attack.make_typable(everything))


def test_mma_never_says_a_forbidden_word(context: AttackContext) -> None:
    attack, _ = attacked("mma", context, forbidden="church, chapel\ncross")
    texts = " ".join(t["prompt"] for t in attack.prompts())
    assert not any(word in texts for word in ("church", "chapel", "cross"))
    assert attack_config.MMAConfig().forbidden_words("Palm tree") == ("palm", "tree")
    assert attack_config.MMAConfig().forbidden_words("photo of a dog") == (
        "photo",
        "dog",
    )  # few tokens have no "a" in them
    assert attack_config.MMAConfig().forbidden_words("a") == ("a",)


def test_swaps_change_one_token_each_by_the_gradient() -> None:
    tokens = torch.tensor([[0, 1]])
    gradient = torch.tensor([[[0.0, 5.0, -1.0, 3.0], [2.0, 0.0, -4.0, -5.0]]])
    tried = mma.draw_swaps(tokens, gradient, 4, 1, torch.Generator())
    assert tried.tolist() == [[[2, 1], [2, 1], [0, 3], [0, 3]]]
    many = mma.draw_swaps(tokens, gradient, 40, 2, torch.Generator().manual_seed(0))[0].tolist()
    assert {tuple(p) for p in many} == {(2, 1), (0, 1), (0, 3), (0, 2)}


def test_crossover_by_hand() -> None:
    parents = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert ring_a_bell.cross_over(parents, 0.0, torch.Generator()).tolist() == parents.tolist()
    many = [ring_a_bell.cross_over(parents, 1.0, torch.Generator().manual_seed(seed)) for seed in range(40)]
    for grown in many:
        assert len(grown) == 6 and torch.equal(grown[:2], parents)
        for parent, first, second in zip(parents, grown[2:4], grown[4:], strict=True):
            assert (first + second - parent).tolist() in parents.tolist()  # the children share out parent and mate
    assert [1, 2, 7, 8] in [grown[2].tolist() for grown in many]


def test_mutation_changes_one_token_at_most() -> None:
    prompts = torch.zeros(400, 5, dtype=torch.long)
    changed = (ring_a_bell.mutate(prompts, 0.25, torch.tensor([7, 8]), torch.Generator().manual_seed(0)) != 0).sum(1)
    assert changed.max() == 1 and 70 < changed.sum() < 130
    assert ring_a_bell.mutate(prompts[:3], 0.0, torch.tensor([7]), torch.Generator()).sum() == 0


def test_concept_vector_by_hand() -> None:
    having, lacking = torch.tensor([[[3.0]], [[5.0]]]), torch.tensor([[[1.0]], [[1.0]]])
    assert ring_a_bell.concept_vector(having, lacking).tolist() == [[3.0]]
    pairs = ring_a_bell.make_prompt_pairs(ConceptConfig(concept="castle"))
    assert ("a castle", "a dog") in pairs and all(a != b for a, b in pairs)
    assert ("a dog, ink style", "a dog") in ring_a_bell.make_prompt_pairs(ConceptConfig(concept="ink", kind="style"))


@pytest.mark.parametrize(
    ("body", "expected"),
    [([5, 1, 2, 6], ([5, 6], 1)), ([1, 2], ([], 0)), ([5, 2, 1], ([8, 9], 2)), ([5, 3], ([5], 1))],
)
def test_the_new_word_stands_where_the_name_stood(body: Sequence[int], expected: tuple[list[int], int]) -> None:
    assert without_name(body, [[1, 2], [3]], [8, 9]) == expected


def test_cce_gives_one_word_for_all_cases(context: AttackContext) -> None:
    attack, _ = attacked("cce", context, steps=2, tokens=2)
    words = attack.result().embeddings
    assert words.shape == (2, 2, 192) and torch.equal(words[0], words[1])
    assert attack.case_slots.at.tolist() == [[5, 6], [2, 3]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("prompt", "synonym", "expected"),
    [
        ("a church, ink style", "Kirche", "a Kirche, ink style"),
        ("a photo of a Church", "a house of God", "a photo of a house of God"),
        ("churches", "chapel", "chapel"),
        ("an image of a church", r"c\1", r"an image of a c\1"),
    ],
)
def test_a_synonym_takes_the_names_place(prompt: str, synonym: str, expected: str) -> None:
    assert replace_name(prompt, ("church", "church tower"), synonym) == expected


def test_shipped_synonyms() -> None:
    assert "a chapel" in synonyms.shipped_synonyms(ConceptConfig(concept="Church"))
    assert len(synonyms.shipped_synonyms(ConceptConfig(concept="nudity", kind="prompt"))) > 5
    assert synonyms.shipped_synonyms(ConceptConfig(concept="unicorn")) == []
    assert "kirche" in synonyms.miniature_synonyms(ConceptConfig(concept="church"))
    assert synonyms.miniature_synonyms(ConceptConfig(concept="ink", kind="style"))[0] == "silhouette"


def test_the_timesteps_rise_in_equal_parts() -> None:
    # 10 steps at 5 timesteps: two at each, in the middle of a fifth of the schedule.
    levels = [find_level(step, 10, 5) for step in range(10)]
    assert levels == pytest.approx([0.1, 0.1, 0.3, 0.3, 0.5, 0.5, 0.7, 0.7, 0.9, 0.9])
    # As published: 40 steps at each of 50 timesteps, 10, 30, ... 990 of 1000.
    published = [int(1000 * find_level(step, 2000, 50)) for step in range(2000)]
    assert published == [t for t in range(10, 1000, 20) for _ in range(40)]
    assert find_level(7, 3, 5) == 0.9  # a step after the last one stays at the last timestep


def test_the_simplex_starts_uniform_or_random() -> None:
    table = torch.eye(4)
    make = partial(TokenSimplex, table, torch.arange(4), 2, 3, torch.Generator().manual_seed(0))
    assert torch.equal(make(start="uniform").parameter.detach(), torch.full((2, 3, 4), 0.25))
    drawn = make(start="random").parameter.detach()
    assert torch.allclose(drawn.sum(-1), torch.ones(2, 3)) and not torch.equal(drawn[0], drawn[1])
