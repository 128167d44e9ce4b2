"""Run the workflows in a ComfyUI and make their thumbnails from what they draw.

    python tools/workflows/thumbnails.py http://127.0.0.1:8188 workflows [NAME ...]

ComfyUI needs the miniature as models/checkpoints/miniature.safetensors. `train` comes first: it makes the encoder that
others load. The workflows for Stable Diffusion are not run; their thumbnails have a text alone.
"""

from __future__ import annotations

import io
import json
import pathlib
import sys
import time
import urllib.parse
import urllib.request
from typing import Any

from graphs import SIDE_BY_SIDE, WORKFLOWS
from layout import LAYOUTS
from PIL import Image, ImageDraw, ImageFont

SIZE = (640, 360)
SHOWN = {"attack": SIDE_BY_SIDE}  # the title of the only pictures of a workflow that its thumbnail shows
NOT_RUN = ("train-sd15", "train-sdxl", "sdxl")
POLL = 1.0  # seconds


def request(url: str, path: str, data: Any = None) -> bytes:
    """Send a GET, or a POST of JSON; return the body."""
    body = None if data is None else json.dumps(data).encode()
    sent = urllib.request.Request(f"{url}/{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(sent, timeout=60) as answer:
        return answer.read()


def run(url: str, graph: dict[str, Any]) -> dict[str, Any]:
    """Run a graph; return the outputs of its nodes."""
    prompt = json.loads(request(url, "prompt", {"prompt": graph}))["prompt_id"]
    while prompt not in (history := json.loads(request(url, f"history/{prompt}"))):
        time.sleep(POLL)
    assert history[prompt]["status"]["status_str"] == "success", history[prompt]["status"]
    return history[prompt]["outputs"]


def fetch_rows(url: str, name: str) -> dict[str, list[Image.Image]]:
    """Run a workflow; return the pictures of each node that saves some, by the node's title, see `SHOWN`."""
    graph = WORKFLOWS[name]()
    outputs = run(url, graph)
    rows = {}
    for id, node in graph.items():
        if node["class_type"] == "SaveImage" and SHOWN.get(name) in (None, node["_meta"]["title"]):
            files = outputs[id]["images"]
            images = [Image.open(io.BytesIO(request(url, "view?" + urllib.parse.urlencode(f)))) for f in files]
            rows[node["_meta"]["title"]] = [image.convert("RGB") for image in images]
    return rows


def draw_rows(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Draw rows of pictures, each under its title."""
    sheet = Image.new("RGB", SIZE, "#1f2937")
    draw = ImageDraw.Draw(sheet)
    height = SIZE[1] // len(rows)
    for k, (title, images) in enumerate(rows.items()):
        draw.text((12, k * height + 6), title, fill="#e5e7eb", font=ImageFont.load_default(18))
        for n, image in enumerate(images):
            image.thumbnail(((SIZE[0] - 12) // len(images) - 12, height - 40), Image.Resampling.LANCZOS)
            sheet.paste(image, (12 + n * (image.width + 12), k * height + 34))
    return sheet


def draw_text(text: str) -> Image.Image:
    """Draw a text in the middle of a sheet."""
    sheet = Image.new("RGB", SIZE, "#1f2937")
    words, lines = text.split(), [""]
    for word in words:
        lines = [*lines, word] if len(lines[-1]) + len(word) > 30 else [*lines[:-1], f"{lines[-1]} {word}".strip()]
    middle = (SIZE[0] // 2, SIZE[1] // 2)
    font = ImageFont.load_default(30)
    ImageDraw.Draw(sheet).multiline_text(middle, "\n".join(lines), "#e5e7eb", font, "mm", 12, "center")
    return sheet


def main(url: str, out: str, *names: str) -> None:
    for name in names or WORKFLOWS:
        made = draw_text(LAYOUTS[name].description) if name in NOT_RUN else draw_rows(fetch_rows(url, name))
        made.save(pathlib.Path(out, f"{name}.jpg"), quality=88)
        print(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
