"""The report page: numbers derived by hand, and what a browser would be given."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from advunlearn.reporting import charts
from advunlearn.reporting import page as html
from advunlearn.reporting.report import format_table

NAN = math.nan
PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "br", "line"}


def row(clean: int, attacked: int, retained: int = 90) -> dict[str, Any]:
    return {
        "asr": {
            "clean": {"success": clean, "total": 100},
            "synonyms": {"success": 0, "total": 100, "by": {"foreign": {"success": 0, "total": 50}}},
            "unlearndiffatk": {"success": attacked, "total": 100},
        },
        "asr_by_budget": {"unlearndiffatk": [[0, clean], [60, attacked]]},
        "utility": {"retained_accuracy": {"correct": retained, "total": 120}, "feature_distance": 2.5},
        "seconds": 12.0,
        "config": {"train": {"lr": 1e-4, "mode": "esd"}},
    }


def full_report(concept: str = "church") -> dict[str, Any]:
    models = {"original": row(97, 100), "esd_text": row(4, 43), "advunlearn": row(1, 2)}
    return {
        "concept": concept,
        "kind": "object",
        "models": models,
        "budget": {"cases": 100, "attack_steps": 60},
        "environment": {"torch": "2.13.0"},
        "command": "advunlearn demo --concept church",
    }


class Page(HTMLParser):
    """Every tag's attributes, the text of the table's cells, and the tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.misplaced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag not in VOID | {"path", "circle"}:
            self.misplaced.append(tag)

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def coordinates(chart: str) -> list[tuple[float, float]]:
    """Return every point of a chart's paths and marks."""
    pairs = re.findall(r"[ML](\S+?) ([^\sMLh\"]+)", " ".join(re.findall(r' d="([^"]*)"', chart)))
    return [(float(x), float(y)) for x, y in pairs + re.findall(r'cx="(.*?)" cy="(.*?)"', chart)]


def test_wilson_interval_by_hand() -> None:
    # z^2 = 3.8415. No hit: 0 to z^2 / (n + z^2) = 3.8415 / 103.8415.
    assert html.wilson_interval(0, 100) == pytest.approx((0.0, 0.036994), abs=1e-6)
    # Half: 0.5 -+ 1.96 / 1.038415 * sqrt(0.25 / 100 + 3.8415 / 40000) = 0.5 -+ 1.887454 * 0.0509514.
    assert html.wilson_interval(50, 100) == pytest.approx((0.403832, 0.596168), abs=2e-6)
    assert html.wilson_interval(7, 7)[1] == 1.0


def test_cells_are_counts_with_bar_and_interval() -> None:
    page = Page(html.render(full_report(), {}, {}))
    assert page.cells[:6] == [
        "97 / 10091.5% to 99.0%",
        "4 / 1001.6% to 9.8%",
        "1 / 1000.2% to 5.4%",
        *["0 / 1000.0% to 3.7%foreign 0 / 50"] * 3,
    ]
    rows = [page.cells[i] for i in range(0, 33, 3)]
    retained = ["90 / 12066.6% to 81.9%", *["-"] * 4]
    assert rows[2:] == ["100 / 10096.3% to 100.0%", "-", *retained, "2.5", "12"]
    bars = [a for t, a in page.seen if t == "td" and "bar" in (a.get("class") or "")]
    assert bars[0]["style"] == "--part:0.970" and bars[0]["class"] == "bar lower"
    assert bars[-1]["style"] == "--part:0.750" and bars[-1]["class"] == "bar higher"


def test_what_was_not_measured_says_why() -> None:
    models = full_report()["models"]
    models["esd_text"]["not_measured"] = {"pair_accuracy": "repeats is 0", "retained_accuracy": "ignored: it is there"}
    models["esd_text"]["utility"]["background_accuracy"] = {"correct": 3, "total": 4}
    report = full_report() | {"models": models}
    page = Page(html.render(report, {}, {}))
    labels = [metric.label for metric in html.list_metrics(models)]
    assert page.cells[3 * labels.index("Pairs") : 3 * labels.index("Pairs") + 3] == [
        "-",
        "not measuredrepeats is 0",
        "-",
    ]
    assert page.cells[3 * labels.index("Retained objects") + 1].startswith("90 / 120")
    head, _, esd, _, note = format_table(report).splitlines()
    assert [head[24 + i : 40 + i].strip() for i in range(4 * 16, 8 * 16, 16)] == [
        "retained",
        "pairs",
        "backgrounds",
        "in-prompt",
    ]
    assert [esd[24 + i : 40 + i].strip() for i in range(4 * 16, 8 * 16, 16)] == ["90/120", "not measured", "3/4", "-"]
    assert note == "not measured: pairs (repeats is 0)"


def test_every_cell_names_its_column_for_narrow_screens_where_the_headings_are_hidden() -> None:
    found = {"prompt": "a", "exact": True, "case": 3, "step": 40}
    models = full_report()["models"]
    models["esd_text"]["prompts"] = {"pez": [found]}
    page = Page(html.render(full_report() | {"models": models}, {}, {}))
    assert all(a.get("data-label") for t, a in page.seen if t == "td")
    assert [a["data-label"] for t, a in page.seen if t == "td"][:3] == [
        "Original model",
        "ESD (text encoder)",
        "AdvUnlearn",
    ]


def test_a_report_of_many_models_is_stacked_on_wide_screens_too() -> None:
    few, many = ({"models": {f"run {i}": row(1, 2) for i in range(n)}} for n in (html.WIDE, html.WIDE + 1))
    assert '<table class="results">' in html.render(few, {}, {})
    assert '<table class="results many">' in html.render(many, {}, {})


def test_the_summary_says_what_the_table_says() -> None:
    assert html.summarize(full_report()["models"]) == [
        "ESD (text encoder): 4 of 100 with the plain prompts, 43 of 100 in the worst case (UnlearnDiffAtk); "
        "90 of 120 retained objects correct.",
        "AdvUnlearn: 1 of 100 with the plain prompts, 2 of 100 in the worst case (UnlearnDiffAtk); "
        "90 of 120 retained objects correct.",
    ]
    assert html.summarize({}) == ["No model was evaluated."]


def test_everything_is_escaped() -> None:
    bad = '<b>"&'
    report = full_report(bad) | {"command": bad, "kind": bad, "environment": {bad: bad}, "budget": {bad: bad}}
    part = {"success": 1, "total": 2}
    report["models"] = {bad: row(1, 2) | {"asr": {"clean": part | {"by": {bad: part}}}, "config": {bad: [bad]}}}
    report["models"][bad]["asr_by_budget"] = {bad: [[0, 1]]}
    page = html.render(report, {bad: PNG}, {bad: {bad: [1.0, 2.0]}})
    assert "<b>" not in page and 'b>"' not in page
    assert "<title>Concept erasure report: &lt;b&gt;&#34;&amp;</title>" in page
    parsed = Page(page)
    assert {a.get("alt") for t, a in parsed.seen if t == "img"} == {bad}
    assert not parsed.misplaced and not parsed.open


def test_the_prompts_found_are_shown_by_attack_escaped_and_not_all_of_them() -> None:
    found = {"prompt": "<b> & co", "exact": False, "case": 3, "step": 40, "tokens": []}
    seed = {"prompt": "a church", "exact": True, "case": 1, "step": 2, "noise_seed": 77}
    models = {"esd_text": row(4, 43) | {"prompts": {"unlearndiffatk": [found] * 23, "seed_search": [seed]}}}
    page = html.render(full_report() | {"models": models}, {}, {})
    tables = page.split("Adversarial prompts")[1].split("<details>")[0]
    assert tables.count("&lt;b&gt; &amp; co</td>") == 20 and "<b>" not in page and "3 are in report.json" not in tables
    assert '<p class="note">3 more are in report.json.</p>' in tables and "<h3>UnlearnDiffAtk</h3>" in tables
    parsed = Page(tables)
    assert parsed.cells[-4:] == ["1", "2", "yes", "a church (noise of seed 77)"]
    assert parsed.cells[:4] == ["3", "40", "no", "<b> & co"]
    parsed = Page(page)
    assert not parsed.misplaced and not parsed.open
    assert "Adversarial prompts" not in html.render(full_report(), {}, {})


def test_page_is_ascii_and_keeps_other_scripts() -> None:
    page = html.render(full_report("\u00e9glise \udcff"), {}, {})
    assert page.isascii() and "&#233;glise" in page


def test_page_needs_nothing_from_outside() -> None:
    page = html.render(full_report(), {"church: clean": PNG}, {"Erase loss": {"advunlearn": [0.3, 0.2]}})
    parsed = Page(page)
    links = [(t, k, v) for t, a in parsed.seen for k, v in a.items() if k in ("src", "href", "srcset", "xlink:href")]
    assert links == [("img", "src", "data:image/png;base64,iVBORw0KGgo=")]
    assert "default-src 'none'" in page
    assert not {"script", "link", "iframe", "object"} & {t for t, _ in parsed.seen}
    assert not re.search(r"https?:|url\(|@import|javascript:|\son\w+=", page)
    assert not parsed.misplaced and not parsed.open


@pytest.mark.parametrize("report", [{}, {"models": None}, {"models": {}}, {"concept": None, "environment": None}])
def test_an_empty_report_is_a_page(report: dict[str, Any]) -> None:
    page = html.render(report, {}, {})
    assert "Concept erasure report: -" in page and "No model was evaluated." in page and "<img" not in page


@pytest.mark.parametrize(
    "part",
    [
        {},
        None,
        {"asr": None, "utility": None, "config": None, "seconds": None},
        {"asr": {"clean": {"success": 1}, "synonyms": {}}, "utility": {"feature_distance": NAN}},
        {"asr": {"clean": {"success": 3, "total": 2}}, "utility": {"neighbour_accuracy": {"correct": 0, "total": 0}}},
        {"asr_by_budget": {"unlearndiffatk": None}, "seconds": "soon"},
    ],
)
def test_what_is_missing_is_a_dash(part: Any) -> None:
    page = html.render({"models": {"advunlearn": part}}, {}, {})
    assert Page(page).cells == ["-"] * 11
    assert "AdvUnlearn: - with the plain prompts, - in the worst case." in page


@pytest.mark.parametrize("values", [[0.25], [0.0], [3.0, 3.0, 3.0], [0.0] * 500, [-1e-12] * 70, [1e299, -1e299]])
def test_one_point_and_constant_values_stay_on_the_canvas(values: list[float]) -> None:
    chart = charts.draw_chart("loss", {"a": [(i + 1.0, v) for i, v in enumerate(values)]}, "iteration").svg
    points = coordinates(chart)
    assert points and all(charts.LEFT <= x <= charts.RIGHT and charts.TOP <= y <= charts.BOTTOM for x, y in points)
    assert chart.count("<circle") == (len(values) if len(values) <= 12 else 0)
    assert chart.count("<text") >= 3  # the label of the axis, and ticks


def test_the_ends_of_the_data_are_the_ends_of_the_axis() -> None:
    chart = charts.draw_chart("t", {"a": [(1.0, 0.0), (3.0, 10.0)]}, "iteration").svg
    assert coordinates(chart)[:2] == [(charts.LEFT, charts.BOTTOM), (charts.RIGHT, charts.TOP)]


@pytest.mark.parametrize("gap", [NAN, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_gap_and_is_counted(gap: Any) -> None:
    page = html.render({}, {}, {"loss": {"a": [1.0, 2.0, gap, 3.0, 2.0]}})
    path = re.findall(r'<path d="(.*?)"', page)[0]
    assert path.count("M") == 2 and path.count("L") == 2
    assert "Not finite, not drawn: 1 of 5 values." in page
    assert not re.search(r"\b(nan|inf|None)\b", page)


def test_no_finite_value_is_said() -> None:
    chart = charts.draw_chart("loss", {"a": [(1.0, NAN)], "b": []}, "iteration")
    assert chart.note == "No finite value to draw." and not chart.svg


def test_long_series_are_thinned_without_losing_a_spike() -> None:
    points = [(float(i), 9.0 if i == 5001 else i % 2) for i in range(10_007)]
    thin = charts.decimate(points)
    assert 200 <= len(thin) <= 400 and (5001.0, 9.0) in thin
    assert thin == sorted(thin)
    assert charts.decimate(points[:400]) == points[:400]
    chart = charts.draw_chart("loss", {"a": points}, "iteration").svg
    assert chart.count('class="raw"') == 1 and len(coordinates(chart)) <= 800


def test_running_mean_by_hand() -> None:
    assert charts.running_mean([0.0, 3.0, 6.0, 0.0], 3) == [1.5, 3.0, 3.0, 3.0]
    mean = charts.running_mean([1.0, NAN, 3.0], 3)
    assert mean[0] == 1.0 and math.isnan(mean[1]) and mean[2] == 3.0


@pytest.mark.parametrize(
    ("low", "high", "least", "expected"),
    [
        (0, 100, 0, [0, 20, 40, 60, 80, 100]),
        (0.0, 0.021, 0, [0, 0.005, 0.01, 0.015, 0.02, 0.025]),
        (-3, 4, 0, [-4, -2, 0, 2, 4]),
        (0, 2, 1, [0, 1, 2]),
    ],
)
def test_ticks_are_round_numbers_that_cover(low: float, high: float, least: float, expected: list[float]) -> None:
    assert charts.choose_ticks(low, high, least) == pytest.approx(expected)


def test_budget_charts_go_from_no_case_to_all() -> None:
    (chart,) = html.draw_budget_charts({"esd_text": row(40, 43), "advunlearn": row(31, 32)})
    assert chart.title == "Successful cases, UnlearnDiffAtk" and ">100</text>" in chart.svg
    assert chart.svg.count(">0</text>") == 2  # no step, no case
    assert chart.svg.count("<circle") == 4 and "<title>60: 43</title>" in chart.svg


def test_a_model_looks_the_same_in_every_chart() -> None:
    few, many = charts.style_series(["advunlearn"]), charts.style_series(["original", "mine", "esd", "advunlearn"])
    assert few["advunlearn"] == many["advunlearn"]
    crowd = charts.style_series([f"m{i}" for i in range(2 * charts.COLOURS)])
    assert len(set(many.values())) == 4 and len(set(crowd.values())) == 2 * charts.COLOURS


def test_settings_that_differ_are_set_off() -> None:
    settings = {"a": {"train": {"lr": 1, "seed": 0}}, "b": {"train": {"lr": 2, "seed": 0}}, "c": {}}
    table = html.make_settings_table("Settings", settings)
    assert table.columns == ("a", "b")
    assert [(row.name, row.values, row.differs) for row in table.rows] == [
        ("train.lr", ("1", "2"), True),
        ("train.seed", ("0", "0"), False),
    ]
    models = {name: {"config": config} for name, config in settings.items()}
    assert re.findall(r'class="differs"><th scope="row">(.*?)<', html.render({"models": models}, {}, {})) == [
        "train.lr"
    ]
