"""Line charts as SVG, inside a page and as a file: pure functions from numbers to markup."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

Points = Sequence[tuple[float, float]]  # (x, y); y is NaN where nothing is drawn
Scale = Callable[[float], float]  # data to SVG units

NAMES = {
    "original": "Original model",
    "esd": "ESD (UNet cross-attention)",
    "esd_text": "ESD (text encoder)",
    "advunlearn": "AdvUnlearn",
    "advunlearn_no_retain": "AdvUnlearn without retain term",
}
CSS = """
:root{--card:#f7f8fa;--ink:#1c2127;--muted:#59636e;--rule:#dfe3e8;
--s0:#d55e00;--s1:#b8588f;--s2:#0067a5;--s3:#3a9ad2;--s4:#00845f;--s5:#7a4a00}
@media (prefers-color-scheme:dark){:root{--card:#1c2026;--ink:#e8ebee;--muted:#9da7b1;--rule:#333a42;
--s0:#ff7d3c;--s1:#e79cc7;--s2:#3f97e0;--s3:#a5d8f7;--s4:#2fc79b;--s5:#f0d848}}
path{fill:none;stroke:var(--c);stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round;
stroke-dasharray:var(--d,none)}circle{fill:var(--c)}.raw{opacity:.28;stroke-width:1.2}line{stroke:var(--rule)}"""
COLOURS, WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 6, 480, 272, 58, 462, 12, 222


def text(value: Any) -> str:
    """Return a value as ASCII HTML text, safe between tags and in a quoted attribute."""
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    return escape(shown).encode("ascii", "xmlcharrefreplace").decode()


def number(value: Any) -> float:
    """Return a finite number as a float, and NaN for everything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if usable else math.nan


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest value, pulled apart when they are the same."""
    low, high = min(values), max(values)
    pad = (abs(high) * 0.1 or 0.5) if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-290) else 0.0
    return low - pad, high + pad


def nice_ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Return 3 to 7 multiples of 1, 2 or 5 times a power of ten (and no finer than `least`) that cover the range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(least, next(f * power for f in (1, 2, 5, 10, 20) if f * power >= rough))
    return [k * step for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return the linear map of low..high onto start..end."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the centred mean over `window` values, without those that are NaN; NaN stays NaN."""
    out, half = [], window // 2
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        out.append(math.nan if math.isnan(value) else sum(near) / len(near))
    return out


def decimate(points: Points, limit: int = 400) -> list[tuple[float, float]]:
    """Return at most `limit` points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= limit:
        return list(points)
    size, out = math.ceil(len(points) / (limit // 2)), []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        drawn = [p for p in part if not math.isnan(p[1])] or [part[0]]
        out += sorted({min(drawn, key=lambda p: p[1]), max(drawn, key=lambda p: p[1])})
    return out


def styles(names: Sequence[str]) -> dict[str, str]:
    """Return the CSS of each series' line; a known model looks the same in every chart."""
    taken = {name: i - 1 for i, name in enumerate(NAMES) if name in names}
    free = (i for i in range(len(names) + len(NAMES)) if i not in taken.values())
    out = {}
    for name in names:
        slot = taken[name] if name in taken else next(free)
        colour = f"--c:var(--s{slot % COLOURS})" if slot >= 0 else "--c:var(--ink)"
        out[name] = colour + (";--d:6 5;--e:dashed" if slot >= COLOURS else "")
    return out


def _path(points: Points, sx: Scale, sy: Scale) -> str:
    """Return SVG path data, lifted over NaN; a point alone is a dot of zero length."""
    out, move = "", True
    for x, y in points:
        if not math.isnan(y):
            out += f"M{sx(x):.1f} {sy(y):.1f}h0" if move else f"L{sx(x):.1f} {sy(y):.1f}"
        move = math.isnan(y)
    return out


def _line(points: Points, style: str, sx: Scale, sy: Scale) -> str:
    """Draw one series: with marks when it is short, with a running mean over the faint raw line when it is long."""
    raw, out = _path(decimate(points), sx, sy), ""
    if len(points) >= 60:
        out, mean = f'<path class="raw" d="{raw}"/>', running_mean([y for _, y in points], min(51, len(points) // 20))
        raw = _path(decimate([(x, y) for (x, _), y in zip(points, mean, strict=True)]), sx, sy)
    marks = [(x, y) for x, y in points if not math.isnan(y)] if len(points) <= 12 else []
    dots = "".join(
        f'<circle cx="{sx(x):.1f}" cy="{sy(y):.1f}" r="3.6"><title>{x:g}: {y:g}</title></circle>' for x, y in marks
    )
    return f'<g style="{style}">{out}<path d="{raw}"/>{dots}</g>'


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], sx: Scale, sy: Scale, x_label: str) -> str:
    out = f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{text(x_label)}</text>'
    for x in x_ticks:
        out += f'<text x="{sx(x):.1f}" y="{BOTTOM + 20}" text-anchor="middle">{x:.6g}</text>'
    for y in y_ticks:
        out += f'<line x1="{LEFT}" x2="{RIGHT}" y1="{sy(y):.1f}" y2="{sy(y):.1f}"/>'
        out += f'<text x="{LEFT - 8}" y="{sy(y) + 4:.1f}" text-anchor="end">{y:.6g}</text>'
    return out


def _finite(series: Mapping[str, Points]) -> list[tuple[float, float]]:
    return [p for points in series.values() for p in points if not math.isnan(p[1])]


def _plot(series: Mapping[str, Points], look: Mapping[str, str], x_label: str, include: Sequence[float]) -> str:
    """Draw axes and lines; there is a finite value."""
    drawn = _finite(series)
    low, high = spread([x for x, _ in drawn])
    x_ticks = [x for x in nice_ticks(low, high, 1) if low <= x <= high]
    y_ticks = nice_ticks(*spread([y for _, y in drawn] + list(include)))
    sx, sy = scale(low, high, LEFT, RIGHT), scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP)
    lines = "".join(_line(points, look[name], sx, sy) for name, points in series.items())
    return _axes(x_ticks, y_ticks, sx, sy, x_label) + lines


def line_chart(title: str, series: Mapping[str, Points], x_label: str, include: Sequence[float] = ()) -> str:
    """Return a <figure> with a legend and an inline SVG line chart; the y axis also covers the values `include`.

    The page that holds it has `CSS`.
    """
    drawn = _finite(series)
    head, lost = f"<figure><figcaption>{text(title)}</figcaption>", sum(map(len, series.values())) - len(drawn)
    if not drawn:
        return f'{head}<p class="note">No finite value to draw.</p></figure>'
    look = styles(list(series))
    key = "".join(f'<li style="{look[name]}">{text(NAMES.get(name, name))}</li>' for name in series)
    note = f'<p class="note">Not finite, left out: {lost} of {lost + len(drawn)} values.</p>' if lost else ""
    return (
        f'{head}<ul class="key">{key}</ul><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">'
        f"{_plot(series, look, x_label, include)}</svg>{note}</figure>"
    )


def svg_file(title: str, series: Mapping[str, Points], x_label: str) -> str:
    """Return a line chart as a whole SVG file, with its title and legend above it; there is a finite value."""
    look, top = styles(list(series)), 52
    names = [NAMES.get(name, name) for name in series]
    rooms = [len(name) + 5 for name in names]  # in letters, with the line and the gap
    starts = [LEFT + (RIGHT - LEFT) * sum(rooms[:i]) / max(sum(rooms), 60) for i in range(len(names))]
    key = "".join(
        f'<g style="{look[name]}"><path d="M{x:.1f} -14h14"/>'
        f'<text class="key" x="{x + 18:.1f}" y="-10">{text(shown)}</text></g>'
        for name, shown, x in zip(series, names, starts, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-top} {WIDTH} {HEIGHT + top}" width="{2 * WIDTH}">'
        f"<style>{CSS}text{{font:13px system-ui,sans-serif;fill:var(--muted)}}.title{{font-weight:600;fill:var(--ink)}}"
        ".key{font-size:10px}"
        f'</style><rect y="{-top}" width="{WIDTH}" height="{HEIGHT + top}" fill="var(--card)"/>'
        f'<text class="title" x="{LEFT}" y="-32">{text(title)}</text>{key}{_plot(series, look, x_label, ())}</svg>\n'
    )
