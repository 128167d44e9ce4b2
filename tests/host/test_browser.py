"""What a person sees: each workflow, each new node, an error, a cancel, a resume, in a browser and both renderers."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from . import graphs
from .browser import VUE, Page, find_browser, open_page
from .server import PACK, Server
from .test_load import list_choices

pytestmark = pytest.mark.host
READABLE = 0.6  # the zoom below which the page draws no texts
SCREEN = 960  # pixels of a 1080p screen that the page leaves to its graph
TYPES = "() => Object.keys(LiteGraph.registered_node_types).filter((type) => type.startsWith('AdvUnlearn'))"
UNKNOWN = "() => app.graph.nodes.map(({ type }) => type).filter((type) => !LiteGraph.registered_node_types[type])"
FIT = "() => app.extensionManager.command.execute('Comfy.Canvas.FitView')"
# Numbers of a node whose widget shows other digits than it has.
ROUNDED = """(id) => app.graph.getNodeById(id).widgets
    .filter(({ value, options }) => typeof value === "number" && options?.precision !== undefined)
    .filter(({ value, options }) => Number(value.toFixed(options.precision)) !== value)
    .map(({ name, value, options }) => `${name}: ${value.toFixed(options.precision)} for ${value}`)"""

# Numbers of a node whose widget shows more digits than they have.
LONG = """(id) => app.graph.getNodeById(id).widgets
    .filter(({ value, options }) => typeof value === "number" && options?.precision !== undefined)
    .map(({ name, value, options }) => `${name}: ${value.toFixed(options.precision)}`)
    .filter((shown) => /\\.\\d*0$/.test(shown))"""


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[Page]:
    pytest.importorskip("playwright", reason="no playwright: pip install playwright")
    if find_browser() is None:
        pytest.skip("no browser: install Chromium, or set CHROMIUM")
    with open_page(server) as page:
        yield page


@pytest.fixture(scope="module", params=["LiteGraph", "Vue"])
def page(browser: Page, request: pytest.FixtureRequest) -> Page:
    vue = request.param == "Vue"
    browser.open(vue=vue)
    if vue and not (browser.has_setting(VUE) and browser.setting(VUE)):
        pytest.skip("this version of the page has one renderer")
    return browser


def test_a_new_node_fits_the_screen_and_shows_its_numbers(page: Page) -> None:
    tall, rounded = {}, {}
    for kind in page.page.evaluate(TYPES):
        node = page.drop(kind)
        page.page.wait_for_timeout(300)
        if (height := page.height(node)) > SCREEN:
            tall[kind] = height
        if found := page.page.evaluate(ROUNDED, node) + page.page.evaluate(LONG, node):
            rounded[kind] = found
    assert not tall and not rounded


@pytest.mark.parametrize("name", sorted(path.stem for path in (PACK / "workflows").glob("*.json")))
def test_a_workflow_opens_on_one_screen_with_readable_texts(page: Page, name: str) -> None:
    page.load_workflow(json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
    assert page.page.evaluate("() => app.canvas.ds.scale") >= READABLE  # as a file; as a template the page fits it
    page.page.evaluate(FIT)
    page.page.wait_for_timeout(1000)
    assert page.page.evaluate("() => app.canvas.ds.scale") >= READABLE
    assert page.page.evaluate(UNKNOWN) == []
    assert page.is_drawn("First") or page.is_drawn("Press Run")  # the note
    assert page.errors == []


@pytest.fixture(scope="module")
def empty(host: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without any encoder."""
    server = Server(host, tmp_path_factory.mktemp("empty"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_a_new_loader_without_encoders_says_what_to_do_and_is_no_error(page: Page, empty: Server) -> None:
    vue = page.has_setting(VUE) and page.setting(VUE)
    file = empty.base / "models" / "text_encoders" / "robust.safetensors"
    with page.other(empty) as opened:
        for encoders in (["none"], [file.name, "none"]):
            file.touch() if file.name in encoders else file.unlink(missing_ok=True)
            assert list_choices(empty, "encoder") == encoders
            if file.name in encoders:  # the page still has the old list
                node = opened.drop("AdvUnlearnLoadRobustCLIP")
                assert "press R to see it" in opened.wait_for_text(node, "after this page was opened", timeout=30)
                opened.load_api(graphs.load_graph(encoder=file.name))
                opened.page.wait_for_timeout(2000)
                assert opened.node_text("robust") == ""
            opened.open(vue=vue)
            node = opened.drop("AdvUnlearnLoadRobustCLIP")
            opened.page.wait_for_timeout(2000)
            assert ("train one with Train AdvUnlearn Encoder" in opened.node_text(node)) == (encoders == ["none"])
            assert opened.toasts() == []


def test_an_error_of_a_run_is_said_in_the_packs_own_words(page: Page) -> None:
    page.load_api(graphs.load_graph())
    page.run()
    page.wait_for_text("robust", "no encoder is chosen: choose one under encoder")
    page.wait_idle()
    (toast,) = page.toasts()
    assert toast.startswith("Load Robust CLIP no encoder is chosen: choose one under encoder (Train AdvUnlearn Encoder")


def test_a_refused_input_is_said_once_and_on_that_input(page: Page) -> None:
    page.load_api(graphs.train_graph("what?"))
    page.run()
    said = page.wait_for_text("train", "save_name: the name 'what?'")
    (toast,) = page.toasts()
    assert toast == f"Train AdvUnlearn Encoder {said}" and said.count("what?") == 1
    errors = page.page.evaluate("() => app.lastNodeErrors")["train"]["errors"]
    assert [error["extra_info"]["input_name"] for error in errors] == ["save_name"]


def cancel_at(page: Page, graph: dict[str, Any], text: str) -> str:
    """Run a graph, cancel it once the training says something, and return what it says then."""
    page.load_api(graph)
    page.run()
    page.wait_for_text("train", text)
    page.server.request("interrupt", {})
    page.wait_idle()
    return page.wait_for_text("train", "stopped")


def test_a_cancelled_training_says_what_is_kept_and_a_resumed_one_what_it_ignores(
    page: Page, request: pytest.FixtureRequest
) -> None:
    name = f"seen_{page.setting(VUE) if page.has_setting(VUE) else ''}"
    changes: dict[str, Any] = {"training": {"mode": "advunlearn"}, "iterations": 10}
    said = cancel_at(page, graphs.train_graph(name, **changes), "iteration 3 of 10")
    stopped = int(said.split()[2])  # on a busy machine some iterations after the text was read
    assert said == f"stopped at {stopped} of 10, kept in {name}; turn on resume to go on" and 2 <= stopped < 10
    (toast,) = page.toasts()
    assert toast == f"Train AdvUnlearn Encoder {said}"
    page.load_api(graphs.train_graph(name, resume=True, seed=5, **changes))
    page.run()
    said = page.wait_for_text("train", "ignored")
    assert f"resumed at {stopped} with the stored settings; ignored: seed is 5, stored 0" in said
    page.wait_for_text("train", "done: 10 iterations, saved as")
    page.wait_idle()
    assert page.toasts() == []


def test_resume_with_nothing_to_resume_is_said_before_the_training(page: Page) -> None:
    said = cancel_at(
        page, graphs.train_graph("nothing", resume=True, iterations=50), "training starts from the beginning"
    )
    assert said.startswith("stopped")


SET = """([id, name, value]) => {
    app.graph.getNodeById(id).widgets.find((widget) => widget.name === name).value = value;
}"""


def test_a_node_whose_result_is_in_the_hosts_cache_says_again_what_it_said(page: Page) -> None:
    graph = graphs.train_graph("cached")
    page.load_api(graph)
    page.run()
    said = page.wait_for_text("train", "done: 2 iterations")
    page.wait_idle()
    page.load_api(graph)  # as in a page that is opened anew
    assert page.node_text("train") == ""
    page.run()
    assert page.wait_for_text("train", "done") == said and page.is_drawn("done: 2 iterations")
    page.page.evaluate(SET, ["train", "concept", " "])
    page.run()
    assert "done" not in page.wait_for_text("train", "concept is empty")
    page.page.evaluate(SET, ["train", "concept", "church"])
    page.run()
    assert page.wait_for_text("train", "done") == said
    page.toasts()


def test_a_cached_node_that_is_no_output_says_again_what_it_said(page: Page) -> None:
    """Earlier hosts send nothing about such a node."""
    (name,) = page.server.run(graphs.train_graph("cached"))["name"]["text"]
    described = page.server.get("object_info/AdvUnlearnLoadRobustCLIP")["AdvUnlearnLoadRobustCLIP"]
    graph = graphs.load_graph(encoder=name)
    page.load_api(graph)
    page.run()
    said = page.wait_for_text("robust", f"loaded {name}")
    page.wait_idle()
    page.load_api(graph)
    page.run()
    if described.get("has_intermediate_output"):
        assert page.wait_for_text("robust", f"loaded {name}", timeout=60) == said
    page.wait_idle()
