"""What is said of the pictures of an attack, and the conditioning without a prompt. The host tests draw them."""

from __future__ import annotations

import pytest
import torch
from pack import import_from_pack

pictures = import_from_pack("nodes.attack_pictures")


@pytest.mark.parametrize(
    ("without", "attacked", "outcome"),
    [(0, 0, "failed"), (0, 1, "succeeded"), (2, 3, "succeeded"), (2, 2, "made no difference"), (3, 1, "failed")],
)
def test_an_attack_succeeds_if_more_pictures_show_the_concept_with_it(
    without: int, attacked: int, outcome: str
) -> None:
    verdict = pictures.Verdict("church", [[i < count for i in range(4)] for count in (without, attacked)])
    first, _ = verdict.describe()
    assert first == f"the attack {outcome}: church in {attacked} of 4 pictures, without it in {without}"


def test_the_pictures_that_show_the_concept_are_counted_from_1() -> None:
    verdict = pictures.Verdict("church", [[False, False, False], [True, False, True]])
    assert verdict.describe()[1] == "pictures that show church: without the attack none; with the attack 1, 3"


def test_the_empty_prompt_is_repeated_in_chunks_and_its_pooled_row_is_not() -> None:
    rows = torch.arange(3.0).view(1, 3, 1)  # a chunk of two rows, and the pooled one
    assert pictures.repeat_chunks(rows, 5, True).flatten().tolist() == [0, 1, 0, 1, 2]
    assert pictures.repeat_chunks(rows, 6, False).flatten().tolist() == [0, 1, 2, 0, 1, 2]
