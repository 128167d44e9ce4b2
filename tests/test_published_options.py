"""docs/published-options.md names flags and tests that exist, and leaves no published attack position out."""

from __future__ import annotations

import argparse
import pathlib
import re

from advunlearn.cli import build_parser
from advunlearn.config import AttackConfig, choices

ROOT = pathlib.Path(__file__).parents[1]


def test_every_flag_and_every_test_in_the_table_exists() -> None:
    page = (ROOT / "docs" / "published-options.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] != "published"]
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices.values()
    flags = {flag for command in commands for action in command._actions for flag in action.option_strings}
    assert len(rows) > 60 and len(flags) > 60
    for row in rows:
        assert len(row) == 3 and re.search(r"`test_\w+`|`tests/|left out", row[2]), row
        assert set(re.findall(r"--[a-z][\w-]*", " ".join(row[1:]))) <= flags, row
        assert all(f"def {name}(" in tests for name in re.findall(r"`(test_\w+)`", row[2])), row
    ours = " ".join(row[1] for row in rows)
    assert all(re.search(rf"[` ]{position}`", ours) for position in choices(AttackConfig, "position"))
