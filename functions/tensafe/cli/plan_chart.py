"""The chart of a privacy plan: bars on a terminal, or an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

_BAR_CHARS: Final = 24
_FULL, _LIGHT = "█", "░"
_ROW, _NAME, _BAR, _GAP = 34, 230, 250, 90
"""Of the SVG, in pixels: a row's height, the names' width, a full bar's, and that of a bar's number."""
_INK, _HONEST, _OTHER = "#1f2937", "#0f766e", "#cbd5e1"


@dataclass(frozen=True, slots=True)
class Bar:
    """A mode: its noise multiplier, its utility proxy, and whether it is honest for the user's loop."""

    name: str
    noise_multiplier: float
    relative_error: float
    honest: bool


NOISE: Final = "noise multiplier"
ERROR: Final = "error of sums over steps, relative to Poisson-sampled DP-SGD (lower is better)"


def terminal_chart(bars: Sequence[Bar]) -> list[str]:
    """Two groups of lines; the bars of modes that are not honest for the loop are light."""
    width = max(len(bar.name) for bar in bars)
    lines = []
    for title, values in _groups(bars):
        longest = max(values)
        lines += ["", title]
        for bar, value in zip(bars, values, strict=True):
            filled = max(1, round(_BAR_CHARS * value / longest))
            lines.append(f"{bar.name:<{width}}  {(_FULL if bar.honest else _LIGHT) * filled} {value:.3g}")
    return [*lines, f"{_FULL} honest for your loop   {_LIGHT} not"]


def svg_chart(bars: Sequence[Bar], title: str) -> str:
    """The same as a document of its own; `title` says what was asked."""
    height = _ROW * (len(bars) + 4)
    width = _NAME + 2 * (_BAR + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="13" fill="{_INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(12, _ROW - 10, title, "font-weight='bold'"),
    ]
    for index, bar in enumerate(bars):
        parts.append(_text(12, _middle(index), bar.name))
    for column, (name, values) in enumerate(_groups(bars)):
        left = _NAME + column * (_BAR + _GAP)
        parts.append(
            _text(
                left,
                2 * _ROW - 10,
                name if column == 0 else "error relative to Poisson DP-SGD (lower is better)",
            )
        )
        for index, (bar, value) in enumerate(zip(bars, values, strict=True)):
            length = max(2.0, _BAR * value / max(values))
            colour = _HONEST if bar.honest else _OTHER
            top = _middle(index) - 15
            parts.append(
                f'<rect x="{left}" y="{top}" width="{length:.1f}" height="20" rx="3" fill="{colour}"/>'
            )
            parts.append(_text(left + length + 8, _middle(index), f"{value:.3g}"))
    foot = height - _ROW // 2
    for left, colour, meaning in (
        (12, _HONEST, "honest for your loop"),
        (_NAME, _OTHER, "not honest for it"),
    ):
        parts.append(f'<rect x="{left}" y="{foot - 11}" width="14" height="14" rx="3" fill="{colour}"/>')
        parts.append(_text(left + 22, foot, meaning))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _groups(bars: Sequence[Bar]) -> list[tuple[str, list[float]]]:
    return [
        (NOISE, [bar.noise_multiplier for bar in bars]),
        (ERROR, [bar.relative_error for bar in bars]),
    ]


def _middle(index: int) -> int:
    """The base line of a row's text."""
    return _ROW * (index + 3) - 10


def _text(left: float, base: float, text: str, more: str = "") -> str:
    return f'<text x="{left:.1f}" y="{base}" {more}>{escape(text)}</text>'
