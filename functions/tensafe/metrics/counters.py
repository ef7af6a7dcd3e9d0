"""Numbers kept in this process, for it to announce: the adapter of the single machine's workers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Final, cast

from tensafe.metrics.port import Metric, Series

SERIES_MAX: Final = 500
"""Further ones are not kept: a worker's announcement stays small."""
Label = tuple[str, str]


class Counters:
    """Implements `Metrics`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[Metric, tuple[Label, ...]], float] = {}

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        key = (metric, tuple(sorted(labels.items())))
        with self._lock:
            if key in self._values or len(self._values) < SERIES_MAX:
                self._values[key] = self._values.get(key, 0.0) + value

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        key = (metric, tuple(sorted(labels.items())))
        with self._lock:
            if key in self._values or len(self._values) < SERIES_MAX:
                self._values[key] = value

    def series(self) -> list[Series]:
        with self._lock:
            return [Series(metric, labels, value) for (metric, labels), value in self._values.items()]


def to_json(series: Iterable[Series]) -> list[list[object]]:
    """As an announcement holds them."""
    return [[one.metric.value, dict(one.labels), one.value] for one in series]


def from_json(found: Sequence[object]) -> list[Series]:
    """What `to_json` made; a metric that this release does not know is left out."""
    known = {metric.value for metric in Metric}
    rows = [cast("tuple[str, dict[str, str], float]", row) for row in found]
    return [
        Series(Metric(name), tuple(sorted(labels.items())), float(value))
        for name, labels, value in rows
        if name in known
    ]
