"""The page of a running ComfyUI in a Chromium ($CHROMIUM, default /usr/bin/chromium), driven by playwright."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator

from playwright.sync_api import Page, sync_playwright

WORKFLOWS = pathlib.Path(__file__).parents[2] / "workflows"
READY = "() => window.app?.graph && window.app?.loadApiJson && window.app?.extensionManager"
IDLE = (
    "async () => { const q = await (await fetch('/queue')).json(); return !q.queue_running[0] && !q.queue_pending[0]; }"
)


@contextlib.contextmanager
def open_page(url: str, width: int, height: int) -> Iterator[Page]:
    """Open ComfyUI's page in a window of a size in pixels, and wait until it can load workflows."""
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(url)
        page.wait_for_function(READY, timeout=120_000)
        page.wait_for_timeout(3000)
        yield page
        browser.close()


def open_workflow(page: Page, name: str) -> None:
    """Open a shipped workflow."""
    page.evaluate("(graph) => app.loadGraphData(graph)", json.loads((WORKFLOWS / f"{name}.json").read_text()))
    page.wait_for_timeout(1500)
