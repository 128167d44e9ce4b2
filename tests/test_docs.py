"""The documentation: links lead somewhere, and README stays short."""

from __future__ import annotations

import argparse
import json
import pathlib
import re

import pytest

from advunlearn.cli.main import build_parser

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("tools/**/*.md"),
    *ROOT.glob("web/docs/*.md"),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def read_without_code(page: pathlib.Path) -> str:
    """Return a page without its blocks of code, whose lines may look like headings or links."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def list_anchors(page: pathlib.Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", read_without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def find_broken_links(page: pathlib.Path) -> list[str]:
    """Return the relative links of a page that lead to no file, or to no heading of a page."""
    broken = []
    for link in LINK.findall(read_without_code(page)):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file_and_a_heading(page: pathlib.Path) -> None:
    assert find_broken_links(page) == []


def test_broken_links_are_found(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One: two\n[a](page.md) [b](#one-two) [c](https://example.org/x)\n```\n[d](e.md)\n```\n")
    assert find_broken_links(page) == []
    page.write_text("# One\n![a](missing.png) [b](page.md#two)\n")
    assert find_broken_links(page) == ["missing.png", "page.md#two"]


def test_docs_that_are_named_in_code_exist() -> None:
    sources = [
        path
        for folder in ("advunlearn", "benchmarks", "nodes", "tests", "tools")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    named = {
        name
        for path in [*sources, *PAGES]
        for name in re.findall(r"(?<!web/)\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1150


def list_flags_by_command() -> dict[str, set[str]]:
    """Return the flags of each command."""
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    return {name: set(parser._option_string_actions) for name, parser in commands.items()}


def test_commands_in_the_docs_have_the_flags_that_exist() -> None:
    flags = list_flags_by_command()
    calls = [
        (page.name, *call)
        for page in PAGES
        for call in re.findall(r"advunlearn ([a-z]+)((?: (?![#&])[^\s`;]+)*)", page.read_text(encoding="utf-8"))
        if call[0] in flags
    ]
    assert len(calls) > 60
    for page, command, words in calls:
        unknown = {word for word in words.split() if word.startswith("--")} - flags[command]
        assert not unknown, f"{page}: advunlearn {command}{words}"


def sum_over_seeds(concept: str, model: str) -> tuple[str, str, str]:
    """Return successes of typed text and in the worst case, and retained objects, from the raw rows."""
    results = json.loads((ROOT / "benchmarks" / "results" / "phenomenon.json").read_text(encoding="utf-8"))
    rows = [row for row in results["rows"] if (row["concept"], row["model"]) == (concept, model)]
    totals = [0] * 6
    for seed in {row["seed"] for row in rows}:
        asr: dict[str, tuple[int, int]] = {}
        retained = (0, 0)
        for row in (row for row in rows if row["seed"] == seed and row["part"] != "cce"):  # measured on castle only
            asr |= {name: (count["success"], count["total"]) for name, count in row["asr"].items()}
            if "utility" in row:
                retained = tuple(row["utility"]["retained_accuracy"].values())
        typed = max(count for name, count in asr.items() if name != "soft_prefix")  # it needs embeddings
        totals = [total + n for total, n in zip(totals, (*typed, *max(asr.values()), *retained), strict=True)]
    return f"{totals[0]}/{totals[1]}", f"{totals[2]}/{totals[3]}", f"{totals[4]}/{totals[5]}"


@pytest.mark.parametrize("concept", ["castle", "church", "parachute", "sailboat"])
def test_readmes_figures_are_those_of_the_raw_rows(concept: str) -> None:
    typed, worst, _ = sum_over_seeds(concept, "esd_text")
    robust_typed, robust_worst, retained = sum_over_seeds(concept, "advunlearn")
    row = f"| {concept} | {typed}, {worst} | {robust_typed}, {robust_worst} | {retained} (62/63) |"
    assert row in (ROOT / "README.md").read_text(encoding="utf-8")


def test_tests_that_are_named_in_the_docs_exist() -> None:
    named = {
        pair for page in PAGES for pair in re.findall(r"\b(tests/[\w/]+\.py)::(\w+)", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 40
    sources = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named}
    assert [f"{file}::{name}" for file, name in sorted(named) if f"def {name}(" not in sources[file]] == []
