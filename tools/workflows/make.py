"""Open the workflows in a running ComfyUI, arrange them, and save what its page makes of them.

    python tools/workflows/make.py http://127.0.0.1:8188 workflows [NAME ...]

Needs playwright and a Chromium ($CHROMIUM, default /usr/bin/chromium).
"""

from __future__ import annotations

import json
import pathlib
import sys
import uuid
from dataclasses import asdict
from typing import Any

from graphs import WORKFLOWS
from layout import HEAD, LAYOUTS, MODELS, ROOM, fit_view
from page import open_page

ARRANGE = """async ({ id, name, graph, layout, models, room, head }) => {
  await app.loadApiJson(graph, name);
  app.graph.id = id; // by which the page tells the values of graphs apart
  const find = (id) => app.graph.getNodeById(id) ?? app.graph.getNodeById(String(id));
  for (const node of app.graph.nodes) {
    for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
    const file = node.widgets?.find(({ name }) => name === "ckpt_name")?.value;
    if (models[file]) node.properties.models = [{ name: file, url: models[file], directory: "checkpoints" }];
  }
  for (const [id, [x, y, width, height]] of Object.entries(layout.places)) {
    const node = find(Number(id));
    node.pos = [x, y];
    if (width) node.setSize([width, height || node.computeSize()[1]]);
  }
  for (const id of layout.collapsed) find(id).flags.collapsed = true;
  const note = LiteGraph.createNode("MarkdownNote");
  note.title = "Read me first";
  note.pos = [20, 70];
  note.setSize(layout.note_size);
  note.widgets[0].value = layout.note;
  app.graph.add(note);
  for (const { title, nodes } of layout.groups) {
    const boxes = nodes.map((id) => {
      const { flags, size, pos } = find(id);
      const [width, height] = flags.collapsed ? [220, 0] : [size[0], Math.max(size[1], layout.grown[id] ?? 0)];
      return [pos[0], pos[1] - LiteGraph.NODE_TITLE_HEIGHT, pos[0] + width, pos[1] + height];
    });
    const edge = (k, pick) => pick(...boxes.map((box) => box[k]));
    const [left, top] = [edge(0, Math.min) - room, edge(1, Math.min) - head];
    const group = new LiteGraph.LGraphGroup(title);
    group.pos = [left, top];
    group.size = [edge(2, Math.max) + room - left, edge(3, Math.max) + room - top];
    app.graph.add(group);
  }
  app.graph.extra = { info: { name, description: layout.description } };
  return JSON.stringify(app.graph.serialize()); // as a text, since undefined values would come back as null
}"""


def arrange(page: Any, name: str) -> dict[str, Any]:
    """Return a workflow in the page's format."""
    values = {"name": name, "graph": WORKFLOWS[name](), "layout": asdict(LAYOUTS[name]), "models": MODELS}
    id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"advunlearn/{name}"))
    made = json.loads(page.evaluate(ARRANGE, values | {"id": id, "room": ROOM, "head": HEAD}))
    made["extra"]["ds"] = fit_view(made)
    return made


def main(url: str, out: str, *names: str) -> None:
    with open_page(url, 1920, 1080) as page:
        for name in names or WORKFLOWS:
            made = arrange(page, name)
            pathlib.Path(out, f"{name}.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            print(name, len(made["nodes"]), "nodes")


if __name__ == "__main__":
    main(*sys.argv[1:])
