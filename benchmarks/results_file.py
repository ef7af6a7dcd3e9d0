"""`benchmarks/results/latest.json`: what was measured last, one object per measure and device."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

LATEST: Final = Path(__file__).parent / "results" / "latest.json"


@dataclass(frozen=True, slots=True)
class Result:
    """One measure. `value` and `met` are None if it was not run; `device` then says why."""

    name: str
    value: float | None
    unit: str
    goal: str | None
    met: bool | None
    device: str


def merged(former: Sequence[Result], new: Sequence[Result], order: Sequence[str]) -> list[Result]:
    """The new results with the former ones that they do not replace; names no longer known go.

    A figure replaces the same device's: what one processor reaches says little about another's. What was
    not run replaces no figure.
    """
    kept: dict[str, dict[str, Result]] = {name: {} for name in order}
    for result in (*former, *new):
        if result.name in kept:
            kept[result.name][result.device] = result
    return [
        result
        for name in order
        for result in _measured(kept[name].values()) or list(kept[name].values())[-1:]
    ]


def _measured(results: Iterable[Result]) -> list[Result]:
    return [result for result in results if result.value is not None]


def load(path: Path = LATEST) -> list[Result]:
    """The saved results; none if the file is not there."""
    if not path.exists():
        return []
    return [Result(**entry) for entry in json.loads(path.read_text())]


def save(results: Sequence[Result], path: Path = LATEST) -> None:
    """Replace the file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    os.replace(aside, path)
