"""Charts as inline SVG for the demo's report: no script, no external resource, readable by screen readers.

Colours come from CSS classes of the page, so one drawing serves the light and the dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 520
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 18, 34, 44
_LABEL: Final = 48
"""Width of a value's label."""
_MAX_DOTS: Final = 80


@dataclass(frozen=True, slots=True)
class Marker:
    """Something that happened at a step: a vertical line with a label."""

    step: float
    label: str


@dataclass(frozen=True, slots=True)
class Limit:
    """A value that the curve must stay under: a dashed horizontal line with a label."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One series over steps. `series` (1 or 2) picks the colour; `from_zero` starts the y axis at 0."""

    key: str
    title: str
    description: str
    steps: Sequence[float]
    values: Sequence[float]
    value_name: str
    series: int
    from_zero: bool = False
    markers: Sequence[Marker] = ()
    limits: Sequence[Limit] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten apart) that cover low..high.

    Equal or reversed bounds give a range of one around `low`.
    """
    if not high > low:
        low, high = low - 0.5, low + 0.5
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def number(value: float) -> str:
    """A value as a reader wants it: four digits at most, no trailing zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def line_chart(curve: Curve) -> str:
    """An SVG line chart; each point carries a tooltip. Raises ValueError for an empty or ragged series."""
    if not curve.steps or len(curve.steps) != len(curve.values):
        raise ValueError(f"{curve.title}: {len(curve.steps)} steps and {len(curve.values)} values")
    levels = [*curve.values, *(limit.value for limit in curve.limits), *([0.0] if curve.from_zero else [])]
    y_ticks = ticks(min(levels), max(levels))
    x_low = 0.0 if min(curve.steps) <= 1 else min(curve.steps)
    x_ticks = [tick for tick in ticks(x_low, max(curve.steps), about=6) if tick == int(tick)]
    x = Scale(x_low, max(*curve.steps, x_low + 1), _LEFT, WIDTH - _RIGHT)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    parts = [
        axes(x, y, [t for t in x_ticks if x.low <= t <= x.high], y_ticks),
        text("axis-name", (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, "step", anchor="middle"),
        text("axis-name", _LEFT - 40, _TOP - 16, curve.value_name),
        *(_limit(limit, y) for limit in curve.limits),
        *(_marker(marker, x) for marker in curve.markers),
        _series(curve, x, y),
    ]
    return svg(curve.key, curve.title, curve.description, (WIDTH, HEIGHT), parts)


def axes(x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    rows = [
        f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        + text("tick", x.start - 8, y(tick) + 4, number(tick), anchor="end")
        for tick in y_ticks
    ]
    columns = [text("tick", x(tick), y.start + 18, number(tick), anchor="middle") for tick in x_ticks]
    return "".join([*rows, *columns])


def _limit(limit: Limit, y: Scale) -> str:
    at = y(limit.value)
    return f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>' + text(
        "limit-name halo", _LEFT + 6, at + 16, limit.label
    )


def _marker(marker: Marker, x: Scale) -> str:
    at = x(marker.step)
    right_half = at > (x.start + x.end) / 2
    anchor, shift = ("end", -7) if right_half else ("start", 7)
    return (
        f'<line class="event" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 8}" y2="{HEIGHT - _BOTTOM}"/>'
        f'<circle class="event-dot" cx="{at:.1f}" cy="{_TOP - 8}" r="4"/>'
        + text("event-name halo", at + shift, _TOP - 4, marker.label, anchor=anchor)
    )


def _series(curve: Curve, x: Scale, y: Scale) -> str:
    points = [(x(step), y(value)) for step, value in zip(curve.steps, curve.values, strict=True)]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    last_x = points[-1][0]
    beside = [py for px, py in points if px >= last_x - _LABEL]  # what a label at the end must not cover
    label_y = min(beside) - 10 if min(beside) > _TOP + 22 else max(beside) + 20
    names = [f"step {number(s)}: {number(v)}" for s, v in zip(curve.steps, curve.values, strict=True)]
    radius = 3 if len(points) <= _MAX_DOTS else 0
    # The wide transparent circles make the tooltips easy to hit.
    dots = [
        f"<g><title>{escape(name)}</title>"
        f'<circle class="dot s{curve.series}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}"/>'
        f'<circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="9"/></g>'
        for name, (px, py) in zip(names, points, strict=True)
    ]
    return f'<polyline class="line s{curve.series}" points="{path}"/>{"".join(dots)}' + text(
        "value halo", last_x - 2, label_y, number(curve.values[-1]), anchor="end"
    )


def two_bars(key: str, title: str, bars: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars from zero: (name, value, note). Raises ValueError for a value that has no bar."""
    if not bars or any(not math.isfinite(value) or value < 0 for _, value, _ in bars):
        raise ValueError(f"{title}: a bar needs a finite value of 0 or more")
    longest = max(value for _, value, _ in bars) or 1.0
    height = 62 * len(bars) - 16
    full = WIDTH - 20
    rows = []
    for n, (name, value, note) in enumerate(bars):
        top, length = 62 * n, value / longest * full
        rows += [
            text("bar-name", 0, top + 16, name),
            text("bar-note", full, top + 16, note, anchor="end"),
            f'<rect class="track" x="0" y="{top + 25}" width="{full}" height="20" rx="4"/>',
            f'<rect class="bar b{n + 1}" x="0" y="{top + 25}" width="{length:.1f}" height="20" rx="4"/>',
        ]
    said = "; ".join(f"{name}: {number(value)} ({note})" for name, value, note in bars)
    return svg(key, title, said, (full, height), rows)


def svg(key: str, title: str, description: str, size: tuple[float, float], parts: Sequence[str]) -> str:
    """A drawing with its name and its content in words."""
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title>'
        f'<desc id="{key}-d">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def text(kind: str, x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
