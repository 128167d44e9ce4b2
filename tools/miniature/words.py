"""Write the miniature's concepts: what it can draw and every word for it.

    python tools/miniature/words.py BUILD

A keyword that two objects share ("animal", "fruit") cannot stand for either of them alone, so it becomes
context; a keyword that contains the name, or names another object, is no independent route and is dropped.
"""

import collections
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
OUT = HERE.parents[1] / "advunlearn" / "miniature" / "concepts.json"
# Words of the emoji keyword lists that say nothing about the picture, or mislead.
NOISE = {
    "th",
    "face",
    "side",
    "where",
    "class",
    "gang",
    "settle",
    "staffmode",
    "black",
    "green",
    "yellow",
    "orange",
    "red",
    "gold",
    "simple",
    "doge",
    "tbt",
    "kod",
    "mac",
    "cute",
    "open",
    "break",
    "fall",
    "major",
    "win",
    "hang",
    "deploy",
    "activity",
    "entertainment",
    "travel",
    "pattern",
    "push",
    "family",
}
# Objects whose every keyword is shared with another get one or two of their own.
EXTRA = {"bus": ["coach", "omnibus"], "strawberry": ["berry patch", "jam"], "carrot": ["taproot", "root crop"]}
STYLES = {
    "noto": {"artwork": "Noto Emoji", "keywords": ["android", "gradient", "google"]},
    "twemoji": {"artwork": "Twemoji", "keywords": ["twitter", "vector", "flat design"]},
    "fluent": {"artwork": "Fluent Emoji 3D", "keywords": ["3d render", "glossy", "clay"]},
    "ink": {"artwork": "Fluent Emoji High Contrast", "keywords": ["silhouette", "monochrome", "stencil"]},
}
BACKGROUNDS = {
    "white": [255, 255, 255],
    "red": [240, 140, 140],
    "green": [150, 220, 150],
    "blue": [150, 190, 250],
    "yellow": [250, 235, 140],
}


def usable(keyword: str, name: str, names: set[str]) -> bool:
    """Whether a keyword is a route of its own to the object called `name`."""
    stem = name.rstrip("s").removesuffix("ie")
    others = any(re.search(rf"\b{other}s?\b", keyword) for other in names)
    plain = re.fullmatch("[a-z ]+", keyword) and len(keyword) < 18 and keyword.count(" ") <= 1
    return bool(plain) and not others and stem not in keyword and keyword not in name and keyword not in NOISE


def main(build: str) -> None:
    raw = json.loads((pathlib.Path(build) / "words.json").read_text())
    families = json.loads((HERE / "objects.json").read_text())
    family = {name: group for group, members in families.items() for name in members}
    keywords = {
        name: list(dict.fromkeys(re.sub("[_-]", " ", k.lower()) for k in entry["keywords"]))
        for name, entry in raw.items()
    }
    holders = collections.Counter(k for words in keywords.values() for k in words)
    objects = {}
    for name, entry in raw.items():
        good = [k for k in keywords[name] if usable(k, name, set(raw))]
        foreign = {
            lang: label.lower()
            for lang, label in entry["names"].items()
            if not re.search(rf"\b({'|'.join(raw)})s?\b", label.lower())
        }
        objects[name] = {
            "family": family[name],
            "keywords": [k for k in good if holders[k] == 1] + EXTRA.get(name, []),
            "context": [k for k in good if holders[k] > 1],
            "names": foreign,
        }
    OUT.write_text(
        json.dumps({"objects": objects, "styles": STYLES, "backgrounds": BACKGROUNDS}, indent=1, ensure_ascii=True)
        + "\n"
    )


if __name__ == "__main__":
    main(sys.argv[1])
