"""Write the address of the repository that publishes into pyproject.toml: a fork's listing then names the fork.

python tools/listing/address.py https://github.com/OWNER/NAME BRANCH_OR_TAG
"""

from __future__ import annotations

import pathlib
import re
import sys

PYPROJECT = pathlib.Path(__file__).parents[2] / "pyproject.toml"


def with_address(text: str, address: str, ref: str) -> str:
    """Return pyproject.toml with another repository and another ref in its URLs."""
    old = re.search(r'^Repository = "(.*)"$', text, re.MULTILINE)
    assert old, "pyproject.toml has no Repository"
    raw = "https://raw.githubusercontent.com/"
    text = re.sub(rf'"{raw}[^/"]+/[^/"]+/[^/"]+/', f'"{raw}{address.removeprefix("https://github.com/")}/{ref}/', text)
    return text.replace(old[1], address)


def main(address: str, ref: str) -> None:
    PYPROJECT.write_text(with_address(PYPROJECT.read_text(encoding="utf-8"), address, ref), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
