"""The dashboard shows what the service and AWS tell, under the names that they tell it by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tensafe.metrics.port import Metric
from tests.support.dashboard import dashboard_apart, shown
from tests.support.templates import CORE, OBSERVABILITY, Template, read_template, resources

THEIRS = {
    "AWS/ApiGateway": {"Count", "4xx", "5xx", "Latency"},
    "AWS/SQS": {"ApproximateNumberOfMessagesVisible", "ApproximateNumberOfMessagesNotVisible"},
}
"""Of an HTTP API and of queues, by AWS's documentation."""


def apart(seen: Template) -> list[str]:
    filters = resources(read_template(CORE), "AWS::Logs::MetricFilter").values()
    told = {one["MetricTransformations"][0]["MetricName"] for one in filters}
    return dashboard_apart(seen, {*Metric} | told, THEIRS)


def _replaced(old: str, new: str) -> Callable[[Template], None]:
    def plant(seen: Template) -> None:
        body: Any = seen["Resources"]["Dashboard"]["Properties"]["DashboardBody"]
        assert old in body["Fn::Sub"]
        body["Fn::Sub"] = body["Fn::Sub"].replace(old, new)

    return plant


PLANTED = {
    "a metric that nobody tells": _replaced('"LeaseLost"', '"LeasesLost"'),
    "a namespace of nobody": _replaced('"TenSafe","LeaseLost"', '"Tensafe","LeaseLost"'),
    "a dimension that no metric has": _replaced('"LeaseLost","service"', '"LeaseLost","Service"'),
    "another deployment's metric": _replaced(
        '"HeUnavailable","service","${ServiceName}"', '"HeUnavailable","service","tensafe"'
    ),
    "a queue that is none of its parameters": _replaced("${SampleDeadQueueName}", "${SampleDeadQueue}"),
    "a metric of REST APIs": _replaced('"5xx"', '"5XXError"'),
    "another region": _replaced('"Latency","region":"${AWS::Region}"', '"Latency","region":"us-east-1"'),
    "an alarm whose metric is not shown": _replaced(
        '["TenSafe","HeUnavailable","service","${ServiceName}"]',
        '["TenSafe","LeaseLost","service","${ServiceName}"]',
    ),
}


def test_the_dashboard_shows_what_is_told() -> None:
    assert apart(read_template(OBSERVABILITY)) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_of_the_dashboard_is_seen(name: str) -> None:
    seen = read_template(OBSERVABILITY)
    PLANTED[name](seen)
    assert len(apart(seen)) >= 1


def test_short_forms_are_written_out() -> None:
    queues = [one[-1] for one in shown(read_template(OBSERVABILITY)) if one[0] == "AWS/SQS"]
    assert queues == [
        *("${TrainQueueName}", "${SampleQueueName}", "${TrainDeadQueueName}", "${SampleDeadQueueName}"),
        *("${SweepFailuresName}", "${TrainDeadQueueName}", "${SampleDeadQueueName}"),
    ]
