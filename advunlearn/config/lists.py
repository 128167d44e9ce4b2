"""Lists as people type them: separated by commas, semicolons or lines, on any keyboard."""

from __future__ import annotations

import re

# The ASCII ones; ideographic, small and half-width commas and semicolons; the Arabic ones. The full-width ones are
# ASCII after `normalize`.
SEPARATORS = ",;\u3001\ufe50\ufe51\ufe54\uff64\u060c\u061b"

# Full-width forms of ASCII, as an input method for Chinese or Japanese types them: a tokenizer knows the ASCII ones.
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}

# Byte order marks, zero-width spaces, soft hyphens, marks of direction. They come with copied text, and nobody sees
# them, but to the tokenizer a name with one is another name.
INVISIBLE = dict.fromkeys(
    [0xFEFF, 0x200B, 0x2060, 0x00AD, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)

BRACKETED = r"\s*[\[({\u3010]([^\[\](){}\u3010\u3011]*)[\])}\u3011]\s*"
# In front of a line. A dash or a star may begin a name, unless a blank follows; dots and squares do not.
BULLET = r"^\s*(?:[-*+\u2013\u2014]\s+|[\xb7\u2022\u2023\u25aa\u25cb\u25cf\u25e6\u30fb\uff65]\s*)"
NUMBER = r"^\s*\(?\d+[.)\u3001](?!\d)\s*"  # "1. cat", "(1) cat", "1\u3001\u732b"; not "1.5 ton truck"


def normalize(text: str) -> str:
    """Return text without invisible characters, and with ASCII characters instead of their full-width forms."""
    return text.translate({**FULL_WIDTH, **INVISIBLE})


def strip_list_marks(text: str) -> str:
    """Return a list without brackets around all of it, and without bullets or numbers in front of its lines.

    Its lines end with line feeds, and empty ones are left out.
    """
    if bracketed := re.fullmatch(BRACKETED, text):
        text = bracketed[1]
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(re.match(NUMBER, line) for line in lines):  # one line may be a name: "7. Panzer Division"
        lines = [re.sub(NUMBER, "", line) for line in lines]
    return "\n".join(re.sub(BULLET, "", line) for line in lines)


def split_list(text: str) -> list[str]:
    """Return the items of a list, without empty ones."""
    items = re.split(rf"[{SEPARATORS}\n]", strip_list_marks(normalize(text)))
    return [item.strip() for item in items if item.strip()]
