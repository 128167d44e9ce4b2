"""Take the pictures of the help pages (each node as it is when put down) and of the README (the nodes at work).

    python tools/workflows/screenshots.py http://127.0.0.1:8188 web/docs docs

ComfyUI needs the miniature as models/checkpoints/miniature.safetensors. Needs playwright and a Chromium ($CHROMIUM,
default /usr/bin/chromium).
"""

from __future__ import annotations

import io
import pathlib
import sys
from typing import Any

from page import IDLE, open_page, open_workflow
from PIL import Image

EDGE = 12  # pixels around a node
TYPES = "() => Object.keys(LiteGraph.registered_node_types).filter((type) => type.startsWith('AdvUnlearn'))"
# The page remembers values by the graph and the number of a node.
DROP = """(type) => {
  app.graph.clear();
  const node = LiteGraph.createNode(type);
  node.id = 1000 + Math.floor(Math.random() * 1e6);
  app.graph.add(node);
  return node.id;
}"""
# Show some nodes at full size, and return the part of the screen that they take.
SHOW = """([ids, edge]) => {
  const boxes = ids.map((id) => app.graph.getNodeById(id)).map(({ pos, size }) =>
    [pos[0], pos[1] - LiteGraph.NODE_TITLE_HEIGHT, pos[0] + size[0], pos[1] + size[1]]);
  const [left, top] = [0, 1].map((k) => Math.min(...boxes.map((box) => box[k])));
  const [right, bottom] = [2, 3].map((k) => Math.max(...boxes.map((box) => box[k])));
  const canvas = app.canvas.canvas.getBoundingClientRect();
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [300 - left, 200 - top];
  app.canvas.setDirty(true, true);
  return { x: canvas.left + 300 - edge, y: canvas.top + 200 - edge - 16, width: right - left + 2 * edge,
           height: bottom - top + 2 * edge + 16 };
}"""
# The badge of a node is the name of the pack's folder here.
NO_BADGES = "() => app.extensionManager.setting.set('Comfy.NodeBadge.NodeSourceBadgeMode', 'None')"


def take_picture(page: Any, ids: list[int]) -> Image.Image:
    """Return a picture of some nodes."""
    clip = page.evaluate(SHOW, [ids, EDGE])
    page.wait_for_timeout(1000)
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def run_workflow(page: Any, name: str) -> None:
    """Open and run a shipped workflow."""
    open_workflow(page, name)
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_timeout(2000)
    while not page.evaluate(IDLE):
        page.wait_for_timeout(1000)
    page.wait_for_timeout(2000)


def main(url: str, help_pages: str, readme: str) -> None:
    with open_page(url, 2200, 2000) as page:
        page.evaluate(NO_BADGES)
        for kind in page.evaluate(TYPES):
            node = page.evaluate(DROP, kind)
            page.wait_for_timeout(700)
            take_picture(page, [node]).save(pathlib.Path(help_pages, f"{kind}.jpg"), quality=88)
        run_workflow(page, "train")
        take_picture(page, [2]).save(pathlib.Path(readme, "train-node.png"), optimize=True)
        run_workflow(page, "before-and-after")
        take_picture(page, [4, 5, 6, 7]).save(pathlib.Path(readme, "before-and-after.png"), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
