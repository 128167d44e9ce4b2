"""The host's page in a real browser: open workflows, press Run, read what a person reads, take screenshots."""

from __future__ import annotations

import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .server import Server

SIZE = {"width": 1920, "height": 1080}
VUE = "Comfy.VueNodes.Enabled"  # the setting for Nodes 2.0
TEXT = "$$node-text-preview"  # the widget of the host's progress text


def find_browser() -> str | None:
    """Return the path of a Chromium: $CHROMIUM, or the one on the PATH."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


class Page:
    """The host's page. `page` is playwright's."""

    def __init__(self, page: Any, server: Server) -> None:
        self.page, self.server = page, server
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, vue: bool = False) -> None:
        """Open the page with one of its two renderers."""
        self.page.goto(f"http://127.0.0.1:{self.server.port}")
        self._wait()
        if self.has_setting(VUE) and self.setting(VUE) != vue:
            self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [VUE, vue])
            self.page.reload()
            self._wait()
        self.page.keyboard.press("Escape")  # the template browser of a first visit
        self.errors.clear()  # v0.3.64 has one of its own at its start

    @contextmanager
    def other(self, server: Server) -> Iterator[Page]:
        """Context with the page of another server, in the same browser."""
        context = self.page.context.browser.new_context(viewport=SIZE)
        try:
            yield Page(context.new_page(), server)
        finally:
            context.close()

    def _wait(self) -> None:
        ready = "() => window.app?.graph && window.app?.loadApiJson && window.app?.extensionManager"
        self.page.wait_for_function(ready, timeout=120_000)
        self.page.wait_for_timeout(2500)

    def has_setting(self, name: str) -> bool:
        """Return whether this version of the page has a setting."""
        return self.page.evaluate("(name) => name in app.ui.settings.settingsLookup", name)

    def setting(self, name: str) -> Any:
        """Return the value of a setting."""
        return self.page.evaluate("(name) => app.extensionManager.setting.get(name)", name)

    def load_api(self, graph: dict[str, Any]) -> None:
        """Open a graph in the API's format."""
        self.page.evaluate("(graph) => app.loadApiJson(graph, 'test')", graph)
        self.page.wait_for_timeout(1000)

    def load_workflow(self, graph: dict[str, Any]) -> None:
        """Open a graph in the page's format, as from the template browser."""
        self.page.evaluate("(graph) => app.loadGraphData(graph)", graph)
        self.page.wait_for_timeout(1500)

    def drop(self, kind: str) -> int:
        """Put a new node on an empty graph, at its own size; return its id."""
        return self.page.evaluate(
            """(kind) => {
                app.graph.clear();
                const node = LiteGraph.createNode(kind);
                node.id = 1000 + Math.floor(Math.random() * 1e6); // by which the page remembers values
                node.pos = [700, 120];
                app.graph.add(node);
                app.canvas.ds.scale = 1;
                app.canvas.ds.offset = [0, 0];
                app.canvas.setDirty(true, true);
                return node.id;
            }""",
            kind,
        )

    def run(self) -> None:
        """Press Run."""
        self.page.evaluate("() => app.queuePrompt(0, 1)")

    def wait_idle(self, timeout: float = 600) -> None:
        """Wait until nothing is queued or runs."""
        end = time.time() + timeout
        while time.time() < end:
            queue = self.server.get("queue")
            if not queue["queue_running"] and not queue["queue_pending"]:
                self.page.wait_for_timeout(700)
                return
            self.page.wait_for_timeout(200)
        raise TimeoutError("the queue does not end")

    def node_text(self, node: int | str) -> str:
        """Return what a node says under its widgets."""
        script = "([id, name]) => app.graph.getNodeById(id)?.widgets?.find((w) => w.name === name)?.value ?? ''"
        return " ".join(str(self.page.evaluate(script, [node, TEXT])).split())

    def wait_for_text(self, node: int | str, part: str, timeout: float = 900) -> str:
        """Wait until a node says something; return all that it says."""
        end, text = time.time() + timeout, ""
        while time.time() < end:
            text = self.node_text(node)
            if part in text:
                return text
            self.page.wait_for_timeout(100)
        raise TimeoutError(f"node {node} does not say {part!r}, but {text!r}")

    def is_drawn(self, text: str, timeout: float = 5) -> bool:
        """Return whether a text can be seen, at the latest after a time: Vue draws a moment after a change."""
        end = time.time() + timeout
        while not any(found.is_visible() for found in self.page.get_by_text(text).all()):
            if time.time() > end:
                return False
            self.page.wait_for_timeout(200)
        return True

    def toasts(self) -> list[str]:
        """Return the texts of the toasts, and close them."""
        texts = [" ".join(toast.inner_text().split()) for toast in self.page.locator(".p-toast-message").all()]
        self.page.evaluate("() => app.extensionManager.toast.removeAll()")
        self.page.wait_for_timeout(700)
        return texts

    def height(self, node: int | str) -> float:
        """Return the height of a node in pixels, with its title."""
        script = """(id) => {
            const drawn = document.querySelector(`[data-node-id="${id}"]`);
            if (drawn) return drawn.getBoundingClientRect().height;
            return app.graph.getNodeById(id).size[1] + LiteGraph.NODE_TITLE_HEIGHT;
        }"""
        return self.page.evaluate(script, node)

    def screenshot(self, path: pathlib.Path) -> None:
        """Save what is seen."""
        self.page.screenshot(path=path)


@contextmanager
def open_page(server: Server) -> Iterator[Page]:
    """Context with the host's page in a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        try:
            yield Page(browser.new_page(viewport=SIZE), server)
        finally:
            browser.close()
