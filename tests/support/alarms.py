"""The alarms of infra/observability.yaml, held against what the service writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tests.support.templates import OBSERVABILITY, read_template, resources


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm: what it watches, and when a period of it is in alarm."""

    name: str
    namespace: str
    metric: str
    statistic: str
    threshold: float
    comparison: str
    runbook: str

    def in_alarm(self, values: Iterable[float]) -> bool:
        """Whether one period with these values breaches the threshold."""
        given = list(values)
        value = {"Sum": sum(given), "Maximum": max(given, default=0.0)}[self.statistic]
        return value > self.threshold or (
            value == self.threshold and self.comparison == "GreaterThanOrEqualToThreshold"
        )

    def told(self, text: str, service: str = "tensafe") -> list[float]:
        """Its metric's values among the lines of a log, in CloudWatch's embedded format."""
        found: list[float] = []
        for line in text.splitlines():
            if '"_aws"' not in line:
                continue
            written = json.loads(line[line.index("{") :])
            (directive,) = written["_aws"]["CloudWatchMetrics"]
            if directive["Namespace"] == self.namespace and written["service"] == service:
                found += written.get(self.metric, [])
        return found


def alarm(name: str) -> Alarm:
    """The alarm whose name ends with `name`."""
    for one in resources(read_template(OBSERVABILITY), "AWS::CloudWatch::Alarm").values():
        if one["AlarmName"]["Fn::Sub"] == f"${{ServiceName}}-{name}":
            return Alarm(
                name,
                one["Namespace"],
                one["MetricName"],
                one["Statistic"],
                float(one["Threshold"]),
                one["ComparisonOperator"],
                one["AlarmDescription"].rpartition(" ")[2],
            )
    raise KeyError(name)
