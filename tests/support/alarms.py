"""The alarms of the templates, held against what a deployment counts and writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.support.metric_math import worked_out
from tests.support.templates import OBSERVABILITY, TASKS, Template, read_template, resources

Period = Iterable[float] | Mapping[str, Iterable[float]]
"""The values of one period, of an alarm with several metrics by their names."""
STATISTICS: Final = {"Sum": sum, "Maximum": max, "Average": lambda values: sum(values) / len(values)}


@dataclass(frozen=True, slots=True)
class Watched:
    """One metric of an alarm."""

    namespace: str
    metric: str
    statistic: str
    dimensions: Mapping[str, Any]

    def over(self, values: Iterable[float]) -> float | None:
        """Its statistic over one period with these values; None without any."""
        given = list(values)
        return float(STATISTICS[self.statistic](given)) if given else None


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm: what it watches, when a period is in alarm, and of how many periods how many it takes."""

    name: str
    runbook: str
    threshold: float
    comparison: str
    all_watched: Mapping[str, Watched]
    """By the name that the expression has for each; the one metric of an alarm without math is `value`."""
    expression: str
    periods: int
    datapoints: int
    """So many of the last `periods` have to be in alarm."""
    missing: str
    """What a period without data is: breaching, notBreaching, or ignore, which leaves the state as it is."""
    actions: Mapping[str, Sequence[Any]]
    """What is told of it, by the state that it comes to."""

    @property
    def watched(self) -> Watched:
        """The one metric of an alarm that has one."""
        (one,) = self.all_watched.values()
        return one

    def in_alarm(self, values: Period) -> bool:
        """Whether one period with these values breaches the threshold; without any, as the template says."""
        given = values if isinstance(values, Mapping) else {"value": values}
        assert given.keys() == self.all_watched.keys()
        found = {name: one.over(given[name]) for name, one in self.all_watched.items()}
        value = worked_out(self.expression, found)
        if value is None:
            return self.missing == "breaching"
        return {
            "GreaterThanThreshold": value > self.threshold,
            "GreaterThanOrEqualToThreshold": value >= self.threshold,
            "LessThanThreshold": value < self.threshold,
            "LessThanOrEqualToThreshold": value <= self.threshold,
        }[self.comparison]

    def all_clear(self, values: Period) -> bool:
        """Whether one period with these values is none in alarm, and its silence does not leave that open."""
        given = values if isinstance(values, Mapping) else {"value": values}
        silent = not any(list(one) for one in given.values())
        return not self.in_alarm(values) and not (silent and self.missing == "ignore")

    def after(self, given: Sequence[Period]) -> bool:
        """Whether it is in alarm when these periods, the last ones of its life, have passed."""
        return sum(self.in_alarm(period) for period in given[-self.periods :]) >= self.datapoints

    def rings(self, given: Sequence[Period]) -> bool:
        """Whether it goes off at any time while these periods pass, one after the other."""
        return any(self.after(given[:end]) for end in range(1, len(given) + 1))

    def tells(self, given: Sequence[Period]) -> list[str]:
        """The states that somebody is told of while these periods pass, from the state OK on."""
        state, told = "OK", []
        for end in range(1, len(given) + 1):
            last, new = given[max(0, end - self.periods) : end], state
            if self.after(last):
                new = "ALARM"
            elif sum(map(self.all_clear, last)) > self.periods - self.datapoints:
                new = "OK"
            if new != state and self.actions[new]:
                told.append(new)
            state = new
        return told

    def told(self, text: str, service: str = "tensafe") -> list[float]:
        """Its metric's values among the lines of a log, in CloudWatch's embedded format."""
        found: list[float] = []
        for line in text.splitlines():
            if '"_aws"' not in line:
                continue
            written = json.loads(line[line.index("{") :])
            (directive,) = written["_aws"]["CloudWatchMetrics"]
            if directive["Namespace"] == self.watched.namespace and written["service"] == service:
                found += written.get(self.watched.metric, [])
        return found


def alarms() -> dict[str, Alarm]:
    """Every alarm of the templates, by its name without the deployment's."""
    found = [
        _read(one)
        for path in (OBSERVABILITY, TASKS)
        for one in resources(read_template(path), "AWS::CloudWatch::Alarm").values()
    ]
    return {one.name: one for one in found}


def alarm(name: str) -> Alarm:
    """One of them. Raises KeyError."""
    return alarms()[name]


def _read(one: Template) -> Alarm:
    if "MetricName" in one:
        watched, expression = {"value": _watched(one, one["Statistic"])}, "value"
    else:
        stats = {metric["Id"]: metric["MetricStat"] for metric in one["Metrics"] if "MetricStat" in metric}
        watched = {name: _watched(stat["Metric"], stat["Stat"]) for name, stat in stats.items()}
        (expression,) = [metric["Expression"] for metric in one["Metrics"] if metric["ReturnData"]]
    return Alarm(
        one["AlarmName"]["Fn::Sub"].removeprefix("${ServiceName}-"),
        one["AlarmDescription"].rpartition("infra/runbooks/")[2].removesuffix(".md"),
        float(one["Threshold"]),
        one["ComparisonOperator"],
        watched,
        expression,
        one["EvaluationPeriods"],
        one.get("DatapointsToAlarm", one["EvaluationPeriods"]),
        one["TreatMissingData"],
        {"ALARM": one.get("AlarmActions", ()), "OK": one.get("OKActions", ())},
    )


def _watched(metric: Template, statistic: str) -> Watched:
    dimensions = {one["Name"]: one["Value"] for one in metric["Dimensions"]}
    return Watched(metric["Namespace"], metric["MetricName"], statistic, dimensions)
