"""Weights on the concept's name, as ComfyUI applies them."""

from __future__ import annotations

import pytest
import torch
from attack_table import attacked

from advunlearn.attacks.base import AttackContext
from advunlearn.attacks.emphasis import add_weight, emphasize, find_name, spread_over_conditioning
from advunlearn.config.attacks import EmphasisConfig
from advunlearn.errors import AdvUnlearnError


def test_a_weight_by_hand() -> None:
    # z = 3 and 5, z_0 = 1: twice the way from 1 to 5 is 9; the first position has no weight.
    z, empty = torch.tensor([[[3.0], [5.0]]]), torch.tensor([[[1.0], [1.0]]])
    chosen = torch.tensor([[False, True]])
    assert emphasize(z, empty, chosen, 2.0).flatten().tolist() == [3.0, 9.0]
    assert emphasize(z, empty, chosen, 1.0).flatten().tolist() == [3.0, 5.0]
    assert emphasize(z, empty, chosen, -1.0).flatten().tolist() == [3.0, -3.0]


def test_a_weight_stands_where_the_conditioning_has_the_token() -> None:
    # Two chunks of 3 tokens (start 7): the first prompt has both, the second one only the first, which is repeated;
    # behind them stands a pooled row.
    ids = torch.tensor([[7, 1, 8, 7, 2, 8], [7, 3, 8, 0, 0, 0]])
    spread = spread_over_conditioning(ids == torch.tensor([[2], [3]]), ids, 3, 7)
    assert spread.long().tolist() == [[0, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0, 0]]


def test_the_text_is_what_a_host_reads() -> None:
    assert add_weight("a photo of a Church, red", ("church",), 1.5) == "a photo of a (Church:1.5), red"
    assert add_weight("a churchyard", ("church",), 2.0) == "(a churchyard:2)"
    assert add_weight("a church", ("church",), -1.0) == "a (church:-1)"


def test_the_name_s_tokens_are_weighted_or_all(context: AttackContext) -> None:
    ids = context.targets.ids[0].tolist()  # a photo of a church
    assert [i for i, chosen in enumerate(find_name(ids, ("church",), context.tokenizer)) if chosen] == [5]
    assert [i for i, chosen in enumerate(find_name(ids, ("dog",), context.tokenizer)) if chosen] == [1, 2, 3, 4, 5]


def test_each_step_has_the_next_weight(context: AttackContext) -> None:
    first, _ = attacked("emphasis", context, weights="1, 3", steps=1)
    assert torch.allclose(first.result().conditioning, context.encode(context.prompts), atol=1e-6)
    second, losses = attacked("emphasis", context, weights="1, 3", steps=9)
    assert len(losses) == 2 and second.prompts()[1]["prompt"] == "a (church:3)"
    plain, empty = context.encode(context.prompts), context.encode([""])
    change = second.result().conditioning - plain
    assert torch.allclose(change[1, 2], 2 * (plain[1, 2] - empty[0, 2]), atol=1e-5)
    assert not change[1, [0, 1, *range(3, 77)]].any()


def test_weights_are_numbers() -> None:
    assert EmphasisConfig(weights="1.5, -2,").values == (1.5, -2.0)
    assert EmphasisConfig(weights="1.5, -2,").steps == 2 and EmphasisConfig(steps=3).steps == 3
    for text in ("", "much", "1, inf"):
        with pytest.raises(AdvUnlearnError, match="give numbers separated by commas"):
            EmphasisConfig(weights=text)
