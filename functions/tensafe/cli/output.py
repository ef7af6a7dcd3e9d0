"""Tables for people, JSON for scripts, and a progress bar for whoever waits."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import typer

Row = Mapping[str, object]
_QUICK_S: Final = 0.5


def print_rows(rows: Sequence[Row], *, as_json: bool, columns: Sequence[str], empty: str) -> None:
    """A JSON array of all fields, or a table of `columns`; `empty` says what it means that there are none."""
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo(empty)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000  # what reads a pipe does its own wrapping
    with progress("formatting"), console.capture() as text:
        console.print(table)
    typer.echo(text.get(), nl=False)


def print_object(row: Row, *, as_json: bool) -> None:
    """A JSON object, or one `name value` line per field."""
    if as_json:
        typer.echo(json.dumps(row, indent=2))
        return
    width = max((len(name) for name in row), default=0)
    for name, value in row.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {_cell(value)}")


def utc(milliseconds: float | None) -> str | None:
    """ISO 8601 time in UTC, to the second."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(size_bytes: int) -> str:
    """A size for people: 734 B, 1.2 MB."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


@contextmanager
def progress(text: str) -> Iterator[None]:
    """A moving bar on the terminal while the block lasts, unless it is quick; nothing on a pipe."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(text, total=None)
    begin = threading.Timer(_QUICK_S, bar.start)
    begin.start()
    try:
        yield
    finally:
        begin.cancel()
        begin.join()
        if bar.live.is_started:
            bar.stop()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(one) for one in value) or "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return json.dumps(value)
    # What tenants named may hold escape sequences that a terminal would obey.
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))
