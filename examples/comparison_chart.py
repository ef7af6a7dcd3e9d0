"""Held-out loss against epsilon as inline SVG: a curve for each mode, a line for what has no epsilon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from report_charts import HEIGHT, Scale, axes, number, svg, text, ticks

WIDTH: Final = 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 142, 34, 44
_LABEL_APART = 17


@dataclass(frozen=True, slots=True)
class ModeCurve:
    """Losses of one mode over epsilons, ascending; `series` (1 to 3) picks the colour."""

    name: str
    epsilons: Sequence[float]
    losses: Sequence[float]
    series: int


@dataclass(frozen=True, slots=True)
class Level:
    """A loss that has no epsilon."""

    name: str
    loss: float


def epsilon_chart(key: str, title: str, curves: Sequence[ModeCurve], levels: Sequence[Level]) -> str:
    """An SVG chart, epsilon on a logarithmic axis. Raises ValueError for an empty or ragged curve."""
    for curve in curves:
        if not curve.epsilons or len(curve.epsilons) != len(curve.losses):
            raise ValueError(f"{curve.name}: {len(curve.epsilons)} epsilons and {len(curve.losses)} losses")
    losses = [*(loss for curve in curves for loss in curve.losses), *(level.loss for level in levels)]
    epsilons = sorted({round(epsilon, 6) for curve in curves for epsilon in curve.epsilons})
    low, high = math.log(epsilons[0]), math.log(epsilons[-1])
    margin = 0.08 * (high - low) or 1.0
    x = Scale(low - margin, high + margin, _LEFT, WIDTH - _RIGHT)
    y_ticks = ticks(min(losses), max(losses))
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    labels = [
        *((y(curve.losses[-1]), f"name s{curve.series}", curve.name) for curve in curves),
        *((y(level.loss), "name", level.name) for level in levels),
    ]
    parts = [
        axes(x, y, [], y_ticks),
        *(_epsilon_tick(epsilon, x) for epsilon in _apart(epsilons)),
        text("axis-name", (x.start + x.end) / 2, HEIGHT - 6, "ε (logarithmic)", anchor="middle"),
        text("axis-name", _LEFT - 40, _TOP - 16, "nats per answer token, lower is better"),
        *(_level(level, x, y) for level in levels),
        *(_curve(curve, x, y) for curve in curves),
        *(text(kind, x.end + 8, at, name) for at, kind, name in _spread(labels)),
    ]
    said = "; ".join(
        [
            *(f"{c.name}: {_points(c)}" for c in curves),
            *(f"{level.name}: {number(level.loss)}" for level in levels),
        ]
    )
    return svg(key, title, said, (WIDTH, HEIGHT), parts)


def _points(curve: ModeCurve) -> str:
    pairs = zip(curve.epsilons, curve.losses, strict=True)
    return ", ".join(f"{number(loss)} at epsilon {number(epsilon)}" for epsilon, loss in pairs)


def _apart(epsilons: Sequence[float]) -> list[float]:
    """Those that are not next to one that has a tick: modes reach a target to within a thousandth."""
    ticked: list[float] = []
    for epsilon in epsilons:
        if not ticked or epsilon > 1.1 * ticked[-1]:
            ticked.append(epsilon)
    return ticked


def _epsilon_tick(epsilon: float, x: Scale) -> str:
    return text("tick", x(math.log(epsilon)), HEIGHT - _BOTTOM + 18, f"{epsilon:.3g}", anchor="middle")


def _level(level: Level, x: Scale, y: Scale) -> str:
    at = y(level.loss)
    name = f"{level.name}: {number(level.loss)}"
    return (
        f"<g><title>{escape(name)}</title>"
        f'<line class="level" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/></g>'
    )


def _curve(curve: ModeCurve, x: Scale, y: Scale) -> str:
    points = [
        (x(math.log(epsilon)), y(loss), f"{curve.name}, ε {number(epsilon)}: {number(loss)}")
        for epsilon, loss in zip(curve.epsilons, curve.losses, strict=True)
    ]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
    dots = [
        f"<g><title>{escape(name)}</title>"
        f'<circle class="dot s{curve.series}" cx="{px:.1f}" cy="{py:.1f}" r="4"/>'
        f'<circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="11"/></g>'
        for px, py, name in points
    ]
    return f'<polyline class="line s{curve.series}" points="{path}"/>{"".join(dots)}'


def _spread(labels: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Names beside the ends of their lines, moved up or down until none covers another."""
    placed: list[tuple[float, str, str]] = []
    for at, kind, name in sorted(labels):
        lowest = placed[-1][0] + _LABEL_APART if placed else -math.inf
        placed.append((max(at + 4, lowest), kind, name))
    over = max(0.0, placed[-1][0] - (HEIGHT - _BOTTOM + 4)) if placed else 0.0
    return [(at - over, kind, name) for at, kind, name in placed]
