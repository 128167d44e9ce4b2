"""Write locales/en/nodeDefs.json from a running ComfyUI's description of the nodes, and check the translations.

    python tools/locales/make.py http://127.0.0.1:8188

English is the nodes' own text. A translation is a file with the same keys in the folder of its language. The program
prints the keys that a translation lacks or has in addition, and then exits with status 1.
"""

from __future__ import annotations

import json
import pathlib
import sys
import urllib.request
from typing import Any

FOLDER = pathlib.Path(__file__).parents[2] / "locales"


def definitions(info: dict[str, Any]) -> dict[str, Any]:
    """Return the host's description of the pack's nodes in the form of nodeDefs.json."""
    nodes = {}
    for name, node in sorted(info.items()):
        if not name.startswith("AdvUnlearn"):
            continue
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
        nodes[name] = {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": {key: {"name": key, "tooltip": options[1]["tooltip"]} for key, options in inputs.items()},
            "outputs": {str(i): {"name": key, "tooltip": tip} for i, (key, tip) in enumerate(outputs)},
        }
    return nodes


def keys(tree: Any, path: str = "") -> set[str]:
    """Return the paths of all texts."""
    if not isinstance(tree, dict):
        return {path}
    return {k for name, value in tree.items() for k in keys(value, f"{path}/{name}")}


def main(url: str) -> int:
    with urllib.request.urlopen(f"{url}/object_info") as answer:
        english = definitions(json.load(answer))
    path = FOLDER / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(english, indent=1) + "\n", encoding="utf-8")
    status = 0
    for other in sorted(FOLDER.glob("*/nodeDefs.json")):
        for key in sorted(keys(english) ^ keys(json.loads(other.read_text(encoding="utf-8")))):
            print(f"{other.parent.name}: {key}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
