"""The pack around the nodes: what can be checked without a host. `tests/host` has the rest."""

from __future__ import annotations

import json
import pathlib
import re
import runpy

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
# tests/host checks that the English texts are those of the nodes.
NODES = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
IDS = sorted(NODES)


def test_every_node_has_a_help_page_that_names_it() -> None:
    assert len(IDS) == 21 and all(name.startswith("AdvUnlearn") for name in IDS)
    for name in IDS:
        title, text = (ROOT / "web" / "docs" / f"{name}.md").read_text().split("\n", 1)
        assert title == f"# {NODES[name]['display_name']}" and len(text) > 100


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda p: p.stem)
def test_workflows_are_graphs_of_known_nodes_with_a_thumbnail(path: pathlib.Path) -> None:
    graph = json.loads(path.read_text())
    kinds = {node["type"] for node in graph["nodes"]}
    assert any(kind in IDS for kind in kinds)
    assert {kind for kind in kinds if kind.startswith("AdvUnlearn")} <= set(IDS)
    assert path.with_suffix(".jpg").is_file()


READABLE = 0.6  # the zoom below which the page draws no texts


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda p: p.stem)
def test_a_workflow_opens_at_a_zoom_that_shows_all_of_it_on_a_1080p_screen(path: pathlib.Path) -> None:
    graph = json.loads(path.read_text())
    scale, offset = graph["extra"]["ds"]["scale"], graph["extra"]["ds"]["offset"]
    (note,) = (node for node in graph["nodes"] if node["type"] == "MarkdownNote")
    boxes = [*(group["bounding"] for group in graph["groups"]), [*note["pos"], *note["size"]]]
    assert READABLE <= scale <= 1
    for axis, screen in ((0, 1920), (1, 1080)):
        starts = [(box[axis] + offset[axis]) * scale for box in boxes]
        ends = [(box[axis] + box[2 + axis] + offset[axis]) * scale for box in boxes]
        assert min(starts) > 70 and max(ends) < screen - 25, path.stem  # outside of the page's bars


def key_paths(tree: object, path: str = "") -> dict[str, object]:
    """Return every text of a locale by its path."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for name, value in tree.items() for k, v in key_paths(value, f"{path}/{name}").items()}


def test_every_language_has_every_text_of_every_node() -> None:
    found = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in ROOT.glob("locales/*/nodeDefs.json")}
    assert set(found) >= {"en", "zh"} and sorted(found["en"]) == IDS
    for tree in found.values():
        texts = key_paths(tree)
        assert set(texts) == set(key_paths(found["en"])) and all(texts.values())


def test_the_library_never_imports_the_host() -> None:
    for path in (ROOT / "advunlearn").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (comfy|folder_paths|nodes)\b", path.read_text(), re.M), path


@pytest.mark.parametrize("folder", ["advunlearn", "nodes"])
def test_no_source_has_what_scanners_of_packs_take_for_the_execution_of_code(folder: str) -> None:
    """They look for these letters, so re.compile() and Module.eval() alarm them too and are written otherwise here."""
    for path in (ROOT / folder).rglob("*.py"):
        assert not re.search(r"\b(eval|exec|compile)\(|\bos\.system\b", path.read_text(encoding="utf-8")), path


def test_the_listing_has_what_the_registry_shows() -> None:
    """Read as text: Python 3.10 has no reader of TOML."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^\[project\.urls\]\nRepository = "https://github\.com/[\w-]+/[\w-]+"$', text, re.M)
    assert re.search(r'^requires-comfyui = ">=0\.3\.64"$', text, re.M)
    assert '"Operating System :: OS Independent"' in text and '"Environment :: GPU :: NVIDIA CUDA"' in text
    raw = r'^{} = "https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/main/(.*)"$'
    icon, banner = (re.search(raw.format(name), text, re.M) for name in ("Icon", "Banner"))
    assert icon and banner
    assert 'width="400" height="400"' in (ROOT / icon[1]).read_text()
    width, height = Image.open(ROOT / banner[1]).size
    assert 9 * width == 21 * height


def test_a_fork_is_listed_under_its_own_address() -> None:
    module = runpy.run_path(str(ROOT / "tools" / "listing" / "address.py"))
    text = module["with_address"]((ROOT / "pyproject.toml").read_text(), "https://github.com/someone/fork", "v1.2.3")
    assert text.count("https://github.com/someone/fork") == 3
    assert text.count("https://raw.githubusercontent.com/someone/fork/v1.2.3/docs/") == 2
    assert not re.search(r"github(usercontent)?\.com/advunlearn", text)
