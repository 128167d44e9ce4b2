"""Measure what a person waits for: from Run to the first sign of life, the first curve and the end of a training.

    python tools/workflows/timings.py http://127.0.0.1:8188 [NAME]

Runs a workflow that trains (by default `train`) in the page of a ComfyUI. Prints seconds, and shares of the training.
Needs playwright and a Chromium ($CHROMIUM, default /usr/bin/chromium).
"""

from __future__ import annotations

import sys
from typing import Any

from page import IDLE, open_page, open_workflow

TRAIN = "2"  # the training node's id
# Each event of the training node: its seconds since Run, its kind, and its text.
LISTEN = """async (train) => {
  const { api } = await import("/scripts/api.js");
  const seen = window.seenEvents = [];
  const note = (kind, text = "") => seen.push([(performance.now() - window.runAt) / 1000, kind, text]);
  api.addEventListener("progress_text", ({ detail }) => detail.nodeId === train && note("text", detail.text));
  api.addEventListener("b_preview", () => note("picture"));
  api.addEventListener("executed", ({ detail }) => detail.node === train && note("end"));
  window.runAt = performance.now();
  app.queuePrompt(0, 1);
}"""


def watch(page: Any, name: str) -> list[tuple[float, str, str]]:
    """Run a workflow; return what the page learned of its training node, until that ended."""
    open_workflow(page, name)
    page.evaluate(LISTEN, TRAIN)
    page.wait_for_timeout(2000)
    while not page.evaluate(IDLE):
        page.wait_for_timeout(1000)
    seen = [tuple(event) for event in page.evaluate("() => window.seenEvents")]
    (end,) = (k for k, (_, kind, _) in enumerate(seen) if kind == "end")
    return seen[: end + 1]


def find_moments(seen: list[tuple[float, str, str]]) -> dict[str, float]:
    """Return the seconds until each moment that counts, and the longest time without any sign of life."""
    first_iteration = next(when for when, _, text in seen if text.startswith("training: iteration 1 "))
    times = [0.0, *(when for when, _, _ in seen)]
    return {
        "first sign of life": seen[0][0],
        "first picture": next(when for when, kind, _ in seen if kind == "picture"),
        "first curve": next(when for when, kind, _ in seen if kind == "picture" and when > first_iteration),
        "end": seen[-1][0],
        "longest silence": max(after - before for before, after in zip(times, times[1:], strict=False)),
    }


def main(url: str, name: str = "train") -> None:
    with open_page(url, 1920, 1080) as page:
        moments = find_moments(watch(page, name))
    for what, seconds in moments.items():
        print(f"{what}: {seconds:.1f} s, {seconds / moments['end']:.1%} of the run")


if __name__ == "__main__":
    main(*sys.argv[1:])
