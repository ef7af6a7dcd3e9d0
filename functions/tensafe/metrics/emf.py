"""Numbers as CloudWatch takes them from a log: one JSON line in the embedded metric format for each.

By aws-lambda-powertools. `service` is the only dimension, so that a metric costs once and alarms find it;
labels stand beside it in the line, where Logs Insights finds them.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Final

from tensafe.metrics.port import Metric, Series

NAMESPACE: Final = "TenSafe"


class EmfMetrics:
    """Implements `Metrics`. Lines go to standard output, the log's own to standard error."""

    def __init__(self, service: str, write: Callable[[str], object] | None = None) -> None:
        self._service = service
        self._write = write or _to_stdout
        self._lock = threading.Lock()

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        self._emit(metric, value, labels)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._emit(metric, value, labels)

    def series(self) -> list[Series]:
        """CloudWatch keeps them."""
        return []

    def _emit(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        # Loaded with the first number: a function that has none to tell starts without it.
        from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import (  # noqa: PLC0415
            AmazonCloudWatchEMFProvider,
        )

        provider = AmazonCloudWatchEMFProvider(namespace=NAMESPACE, service=self._service)
        unit = "Seconds" if metric is Metric.OPERATION_AGE_S else "None" if metric.level else "Count"
        provider.add_metric(metric.value, unit, value)
        for name, text in labels.items():
            provider.add_metadata(name, text)
        line = json.dumps(provider.serialize_metric_set(), separators=(",", ":"))
        with self._lock:
            self._write(line)


def _to_stdout(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
