"""The benchmark of the attacks: what a baseline had found when it had cost as much as an attack."""

from __future__ import annotations

import pathlib
import runpy

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


def test_baselines_are_read_off_their_curve_at_the_attacks_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    at_cost = runpy.run_path(str(FOLDER / "attacks.py"))["at_cost"]
    # Five cases, one without attack; a look is 10 F, so the tries cost 40, 30 and 20 F: 40, 70 and 90 in all.
    row = {"result": {"sum": {"total": 5}}, "curve": [[0, 1], [1, 2], [2, 3], [3, 3]]}
    costs = {0: "1", 39: "1", 40: "2", 69: "2", 70: "3", 90: "3", 91: ">=3"}
    assert {forwards: at_cost(row, forwards, 10) for forwards in costs} == costs
    row["curve"] = [[0, 1], [1, 5]]
    assert at_cost(row, 1000, 10) == "5"  # more tries would find no more
