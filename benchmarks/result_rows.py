"""Result files of long benchmarks: rows are written as they are measured, and never mixed between settings."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from advunlearn.config.renamed import with_current_names

RESULTS = pathlib.Path(__file__).parent / "results"
# The figures in docs/lab-notes/results.md are of a search over tokens that nobody can type too, as published.
WHOLE_VOCABULARY = {"unlearndiffatk": {"vocabulary": "all"}}

# What an `Evaluator` measures, and what a table calls it.
ATTACKS = {
    "clean": "plain",
    "synonyms": "synonyms",
    "unlearndiffatk": "UnlearnDiffAtk",
    "soft_prefix": "soft prefix",
}


def summed(counts: Sequence[dict[str, int]], key: str) -> str:
    """Return the counts of several seeds: their sum, minimum and maximum."""
    each = [c[key] for c in counts]
    spread = f" ({min(each)} to {max(each)})" if len(each) > 1 else ""
    return f"{sum(each)}/{sum(c['total'] for c in counts)}{spread}"


class ResultRows:
    """The rows of a file in `results`.

    Args:
        name: the file.
        settings: the settings that all rows share; the program ends if the file has rows with others.
    """

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.path, self.settings = RESULTS / name, settings
        self.rows: list[dict[str, Any]] = self.read()

    def read(self) -> list[dict[str, Any]]:
        """Read the rows of the file."""
        if not self.path.is_file():
            return []
        content = json.loads(self.path.read_text())
        settings = with_current_names(content["settings"])
        if settings != self.settings:
            sys.exit(f"{self.path} has rows of {settings}; give these settings, or move the file away")
        return [with_current_names(row) for row in content["rows"]]

    def has(self, **key: Any) -> bool:
        """Return whether there is a row with these values."""
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any], **more: Any) -> None:
        """Add a row to the file, which another process may have extended; `more` is written next to the rows."""
        self.rows = [*self.read(), row]
        self.write(**more)

    def write(self, **more: Any) -> None:
        """Write the file."""
        command = " ".join([f"benchmarks/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]])
        found = {"command": command, "settings": self.settings, **more, "rows": self.rows}
        self.path.write_text(json.dumps(found, indent=1) + "\n")
