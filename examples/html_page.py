"""What the pages of the examples are made of: one HTML file with its style, and nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Final

_STYLE: Final = Path(__file__).with_name("report.css")
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
"""The browser itself refuses any script and anything from outside."""


def page(title: str, lead: str, when: datetime, sections: Sequence[str]) -> str:
    """A whole page; `sections` are HTML, `title` and `lead` are text."""
    style = _STYLE.read_text(encoding="utf-8")
    header = (
        f"<header>\n<h1>{escape(title)}</h1>\n<p class='lead'>{escape(lead)}</p>\n"
        f'<p class="when"><time datetime="{when.isoformat()}">{when:%d %B %Y, %H:%M}</time></p>\n</header>'
    )
    body = "\n".join([header, *sections])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def figure(title: str, drawing: str, caption: str) -> str:
    """A card with a drawing (SVG) and what it shows."""
    return (
        f'<figure class="card"><h2>{escape(title)}</h2>{drawing}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: bool = False) -> str:
    """Rows of text, the first cell of each its name."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = []
    for name, *cells in rows:
        data = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{data}</tr>')
    kind = ' class="numeric"' if numeric else ""
    header = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f"<table{kind}>{header}<tbody>{''.join(lines)}</tbody></table>"


def notes(said: Sequence[str]) -> str:
    """A section of remarks; nothing for none."""
    if not said:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in said)
    return f'<section class="notes"><h2>Notes</h2><ul>{items}</ul></section>'


def duration(seconds: float) -> str:
    """Seconds as a reader wants them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {seconds % 60:02.0f} s"
