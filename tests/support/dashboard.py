"""The metrics of the dashboard's widgets, with CloudWatch's short forms written out."""

from __future__ import annotations

import json
from typing import Any

from tests.support.templates import Template, resources

Metric = tuple[str, ...]
"""Namespace, name, and each dimension with its value."""


def shown(seen: Template) -> list[Metric]:
    """Every metric of every widget. Raises ValueError where one cannot be read."""
    return [metric for widget in widgets(seen) for metric in _written_out(widget["properties"]["metrics"])]


def widgets(seen: Template) -> list[dict[str, Any]]:
    """As the console is given them; what is substituted is left as it stands."""
    (dashboard,) = resources(seen, "AWS::CloudWatch::Dashboard").values()
    found: list[dict[str, Any]] = json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]
    return found


def _written_out(rows: list[list[Any]]) -> list[Metric]:
    """`.` is what stands in its place in the row before, `...` all that is left out before the others."""
    found: list[Metric] = []
    for row in rows:
        parts = [one for one in row if isinstance(one, str)]
        before = found[-1] if found else ()
        if "..." in parts:
            at = parts.index("...")
            parts[at : at + 1] = before[at : len(before) - (len(parts) - at - 1)]
        if len(parts) % 2 or len(parts) < 2 or ("." in parts and len(before) != len(parts)):
            raise ValueError(f"no metric: {row}")
        found.append(tuple(before[at] if one == "." else one for at, one in enumerate(parts)))
    return found


def dashboard_apart(seen: Template, ours: set[str], theirs: dict[str, set[str]]) -> list[str]:
    """What the dashboard shows and nobody tells, or tells otherwise; metrics of ours with an alarm it lacks.

    `ours` are the service's metrics, `theirs` those of AWS by namespace.
    """
    wrong = []
    there = shown(seen)
    alarms = resources(seen, "AWS::CloudWatch::Alarm").values()
    rung = {one["MetricName"] for one in alarms if one.get("Namespace") == "TenSafe"}
    known = {"TenSafe": ours, **theirs}
    for namespace, name, *dimensions in there:
        if name not in known.get(namespace, ()):
            wrong.append(f"{namespace} has no {name}")
        if tuple(dimensions) not in _dimensions(seen).get(namespace, set()):
            wrong.append(f"{namespace} {name} is of no {dimensions}")
    wrong += [
        f"{name} rings and is not shown"
        for name in sorted(rung - {metric[1] for metric in there if metric[0] == "TenSafe"})
    ]
    regions = {one["properties"]["region"] for one in widgets(seen)}
    return wrong if regions == {"${AWS::Region}"} else [*wrong, "a widget of another region"]


def _dimensions(seen: Template) -> dict[str, set[tuple[str, ...]]]:
    """By namespace, with the value that a parameter of the stack gives."""
    queues = [
        name for name in seen["Parameters"] if name.endswith("QueueName") or name == "SweepFailuresName"
    ]
    return {
        "TenSafe": {("service", "${ServiceName}")},
        "AWS/ApiGateway": {("ApiId", "${ApiId}")},
        "AWS/SQS": {("QueueName", f"${{{name}}}") for name in queues},
    }
