"""What the alarms watch is what the functions write: lines in CloudWatch's embedded metric format."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tensafe.metrics.port import Metric
from tensafe.operations.records import OpKind
from tensafe.operations.submissions import Submission
from tensafe.services import Services, wire
from tests.integration.lambdas.conftest import URL
from tests.integration.lambdas.test_api import a_run
from tests.integration.lambdas.test_events import record
from tests.support.aws_stack import Stack
from tests.support.lambda_runtime import Function, http_event
from tests.support.templates import OBSERVABILITY, read_template, resources


def told(text: str) -> list[dict[str, Any]]:
    """The metric lines among a log's."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if "_aws" in line]


def alarm(metric: Metric) -> dict[str, Any]:
    """The template's alarm on it, as CloudWatch would see it."""
    alarms = resources(read_template(OBSERVABILITY), "AWS::CloudWatch::Alarm").values()
    (one,) = [one for one in alarms if one.get("MetricName") == metric.value]
    return dict(one)


def seen_by_its_alarm(line: dict[str, Any], metric: Metric, service: str) -> bool:
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    watched = alarm(metric)
    dimensions = [[one["Name"] for one in watched["Dimensions"]]]
    return (
        directive["Namespace"] == watched["Namespace"]
        and directive["Dimensions"] == dimensions
        and [one["Name"] for one in directive["Metrics"]] == [watched["MetricName"]]
        and line["service"] == service
        and watched["Dimensions"][0]["Value"] == {"Ref": "ServiceName"}
    )


def test_an_answer_that_is_our_fault_is_told(function: Callable[..., Function], key: str) -> None:
    away = function("api", AWS_ENDPOINT_URL="http://127.0.0.1:9", TENSAFE_SERVICE_NAME="ts-prod")
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    answer = away.invoke(http_event("POST", f"{URL}/api/v1/create_session", headers=headers, body=b"{}"))
    assert answer["statusCode"] == 503
    (line,) = told(away.logged)
    assert seen_by_its_alarm(line, Metric.HTTP_5XX, "ts-prod"), line
    assert (line["Http5xx"], line["route"], line["status"]) == ([1.0], "/api/v1/create_session", "503")


def test_the_sweeper_tells_how_long_the_oldest_operation_waits(
    function: Callable[..., Function], services: Services
) -> None:
    run = a_run(services)
    an_hour_ago = wire(services.ports, services.models, clock_ms=lambda: int(time.time() - 3600) * 1000)
    an_hour_ago.submissions.submit(run, Submission(1, OpKind.NOOP, b"{}", ring=False))
    sweeper = function("sweeper", TENSAFE_SERVICE_NAME="ts-prod")
    sweeper.invoke({"source": "aws.events"})
    (line,) = told(sweeper.logged)
    assert seen_by_its_alarm(line, Metric.OPERATION_AGE_S, "ts-prod"), line
    (age_s,) = line["OperationAgeSeconds"]
    assert age_s >= 3600
    assert age_s >= alarm(Metric.OPERATION_AGE_S)["Threshold"]


def test_a_dead_letter_is_told(function: Callable[..., Function], services: Services) -> None:
    run = a_run(services)
    operation = services.outcomes.get(run, 0)
    for _ in range(3):
        operation = services.outcomes.start(operation, ())
    consumer = function("dead_letters")
    consumer.invoke({"Records": [record(1, {"stream": run.stream_id}, "a")]})
    (line,) = told(consumer.logged)
    assert line["DeadLettered"] == [1.0]


@pytest.mark.parametrize(
    "metric", [Metric.LEASE_LOST, Metric.HE_UNAVAILABLE, Metric.BUDGET_USED], ids=lambda one: one.value
)
def test_what_tasks_count_reaches_its_alarm(
    metric: Metric, stack: Stack, services: Services, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the services that a task opens; that it counts is tested where it does."""
    services.metrics.set(metric, 0.5)
    (line,) = told(capfd.readouterr().out)
    assert seen_by_its_alarm(line, metric, stack.environment["TENSAFE_SERVICE_NAME"]), line
