"""Line charts as SVG, for the report page and for files. Pure functions from numbers to markup."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

Points = Sequence[tuple[float, float]]  # (x, y); y is NaN where nothing is drawn
Scale = Callable[[float], float]  # data to SVG units

MODEL_NAMES = {
    "original": "Original model",
    "esd": "ESD (UNet cross-attention)",
    "esd_text": "ESD (text encoder)",
    "advunlearn": "AdvUnlearn",
    "advunlearn_no_retain": "AdvUnlearn without retain term",
}
CHART_CSS = """
:root{--card:#f7f8fa;--ink:#1c2127;--muted:#59636e;--rule:#dfe3e8;
--s0:#d55e00;--s1:#b8588f;--s2:#0067a5;--s3:#3a9ad2;--s4:#00845f;--s5:#7a4a00}
@media (prefers-color-scheme:dark){:root{--card:#1c2026;--ink:#e8ebee;--muted:#9da7b1;--rule:#333a42;
--s0:#ff7d3c;--s1:#e79cc7;--s2:#3f97e0;--s3:#a5d8f7;--s4:#2fc79b;--s5:#f0d848}}
path{fill:none;stroke:var(--c);stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round;
stroke-dasharray:var(--d,none)}circle{fill:var(--c)}.raw{opacity:.28;stroke-width:1.2}line{stroke:var(--rule)}"""
COLOURS = 6
CANVAS_WIDTH = 480
CANVAS_HEIGHT = 272
LEFT = 58
RIGHT = 462
TOP = 12
BOTTOM = 222
HEADER = 52  # height of the title and the legend of an SVG file
FEW_POINTS = 12  # up to this many points are marked
MANY_POINTS = 60  # from this many points on, a running mean is drawn over the raw line


class LegendEntry(NamedTuple):
    """A series of a chart."""

    name: str
    style: str  # CSS of its line


class Chart(NamedTuple):
    """A line chart for the page. The page must contain `CHART_CSS`."""

    title: str
    legend: tuple[LegendEntry, ...]
    svg: str  # axes and lines; "" if there is no finite value
    note: str  # values that could not be drawn; "" if all were


def escape_text(value: object) -> str:
    """Return a value as ASCII HTML text that is safe between tags and in a quoted attribute."""
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    return escape(shown).encode("ascii", "xmlcharrefreplace").decode()


def finite_number(value: object) -> float:
    """Return a finite number as a float, and NaN for everything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return math.nan


def pad_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value, moved apart if they are equal."""
    low = min(values)
    high = max(values)
    equal = high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-290)
    pad = (abs(high) * 0.1 or 0.5) if equal else 0.0
    return low - pad, high + pad


def choose_ticks(low: float, high: float, smallest_step: float = 0.0) -> list[float]:
    """Return 3 to 7 multiples of 1, 2 or 5 times a power of ten, at least `smallest_step` apart, that cover a range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(smallest_step, next(f * power for f in (1, 2, 5, 10, 20) if f * power >= rough))
    return [k * step for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def linear_scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return the linear map of low..high onto start..end."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the centred mean over `window` values, ignoring NaN; a NaN stays NaN."""
    means = []
    half = window // 2
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        means.append(math.nan if math.isnan(value) else sum(near) / len(near))
    return means


def decimate(points: Points, limit: int = 400) -> list[tuple[float, float]]:
    """Return at most `limit` points: the lowest and the highest of each stretch, so that spikes stay visible."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit // 2))
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        finite = [p for p in part if not math.isnan(p[1])] or [part[0]]
        kept += sorted({min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])})
    return kept


def style_series(names: Sequence[str]) -> dict[str, str]:
    """Return the CSS of each series' line; a known model looks the same in every chart."""
    slots = {name: i - 1 for i, name in enumerate(MODEL_NAMES) if name in names}
    free = (i for i in range(len(names) + len(MODEL_NAMES)) if i not in slots.values())
    styles = {}
    for name in names:
        slot = slots[name] if name in slots else next(free)
        colour = f"--c:var(--s{slot % COLOURS})" if slot >= 0 else "--c:var(--ink)"
        styles[name] = colour + (";--d:6 5;--e:dashed" if slot >= COLOURS else "")
    return styles


def _path(points: Points, sx: Scale, sy: Scale) -> str:
    """Return SVG path data, interrupted at NaN; a single point is a line of zero length."""
    data = ""
    move = True
    for x, y in points:
        if not math.isnan(y):
            data += f"M{sx(x):.1f} {sy(y):.1f}h0" if move else f"L{sx(x):.1f} {sy(y):.1f}"
        move = math.isnan(y)
    return data


def _line(points: Points, style: str, sx: Scale, sy: Scale) -> str:
    """Draw one series: marked points if it is short, a running mean over the faint raw line if it is long."""
    line = _path(decimate(points), sx, sy)
    raw = ""
    if len(points) >= MANY_POINTS:
        raw = f'<path class="raw" d="{line}"/>'
        mean = running_mean([y for _, y in points], min(51, len(points) // 20))
        line = _path(decimate([(x, y) for (x, _), y in zip(points, mean, strict=True)]), sx, sy)
    marked = [(x, y) for x, y in points if not math.isnan(y)] if len(points) <= FEW_POINTS else []
    dots = "".join(
        f'<circle cx="{sx(x):.1f}" cy="{sy(y):.1f}" r="3.6"><title>{x:g}: {y:g}</title></circle>' for x, y in marked
    )
    return f'<g style="{style}">{raw}<path d="{line}"/>{dots}</g>'


def _axes(x_ticks: Iterable[float], y_ticks: Iterable[float], sx: Scale, sy: Scale, x_label: str) -> str:
    parts = [
        f'<text x="{(LEFT + RIGHT) / 2}" y="{CANVAS_HEIGHT - 6}" text-anchor="middle">{escape_text(x_label)}</text>'
    ]
    for x in x_ticks:
        parts.append(f'<text x="{sx(x):.1f}" y="{BOTTOM + 20}" text-anchor="middle">{x:.6g}</text>')
    for y in y_ticks:
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{sy(y):.1f}" y2="{sy(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{sy(y) + 4:.1f}" text-anchor="end">{y:.6g}</text>')
    return "".join(parts)


def _finite_points(series: Mapping[str, Points]) -> list[tuple[float, float]]:
    return [p for points in series.values() for p in points if not math.isnan(p[1])]


def _plot(series: Mapping[str, Points], x_label: str, include: Sequence[float] = ()) -> str:
    """Draw axes and lines of series with at least one finite value."""
    finite = _finite_points(series)
    styles = style_series(list(series))
    low, high = pad_range([x for x, _ in finite])
    x_ticks = [x for x in choose_ticks(low, high, 1) if low <= x <= high]
    y_ticks = choose_ticks(*pad_range([y for _, y in finite] + list(include)))
    sx = linear_scale(low, high, LEFT, RIGHT)
    sy = linear_scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP)
    lines = "".join(_line(points, styles[name], sx, sy) for name, points in series.items())
    return _axes(x_ticks, y_ticks, sx, sy, x_label) + lines


def _legend(series: Mapping[str, Points]) -> tuple[LegendEntry, ...]:
    styles = style_series(list(series))
    return tuple(LegendEntry(MODEL_NAMES.get(name, name), styles[name]) for name in series)


def draw_chart(title: str, series: Mapping[str, Points], x_label: str, include: Sequence[float] = ()) -> Chart:
    """Draw a line chart for the page; the y axis also covers the values `include`."""
    total = sum(map(len, series.values()))
    finite = len(_finite_points(series))
    if not finite:
        return Chart(title, (), "", "No finite value to draw.")
    svg = (
        f'<svg viewBox="0 0 {CANVAS_WIDTH} {CANVAS_HEIGHT}" role="img" aria-label="{escape_text(title)}">'
        f"{_plot(series, x_label, include)}</svg>"
    )
    note = f"Not finite, not drawn: {total - finite} of {total} values." if finite < total else ""
    return Chart(title, _legend(series), svg, note)


def draw_svg_file(title: str, series: Mapping[str, Points], x_label: str) -> str:
    """Draw a line chart as a complete SVG file with title and legend; at least one value must be finite."""
    legend = _legend(series)
    widths = [len(entry.name) + 5 for entry in legend]  # in letters, with the line and the gap
    starts = [LEFT + (RIGHT - LEFT) * sum(widths[:i]) / max(sum(widths), 60) for i in range(len(legend))]
    key = "".join(
        f'<g style="{entry.style}"><path d="M{x:.1f} -14h14"/>'
        f'<text class="key" x="{x + 18:.1f}" y="-10">{escape_text(entry.name)}</text></g>'
        for entry, x in zip(legend, starts, strict=True)
    )
    height = CANVAS_HEIGHT + HEADER
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-HEADER} {CANVAS_WIDTH} {height}" '
        f'width="{2 * CANVAS_WIDTH}">'
        f"<style>{CHART_CSS}text{{font:13px system-ui,sans-serif;fill:var(--muted)}}"
        ".title{font-weight:600;fill:var(--ink)}.key{font-size:10px}</style>"
        f'<rect y="{-HEADER}" width="{CANVAS_WIDTH}" height="{height}" fill="var(--card)"/>'
        f'<text class="title" x="{LEFT}" y="-32">{escape_text(title)}</text>{key}{_plot(series, x_label)}</svg>\n'
    )
