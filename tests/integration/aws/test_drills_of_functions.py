"""Drills of the functions: API, authorizer, sweeper fail or are refused, and their runbooks are followed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

import httpx
import pytest

from tensafe.metrics.requests import PROBES
from tests.integration.aws.test_workers import wait_until
from tests.support.alarms import alarm
from tests.support.aws_operator import AwsOperator, tailed
from tests.support.aws_service import AwsService
from tests.support.aws_words import matching
from tests.support.drills import (
    AWAY,
    concurrency_kept,
    counted,
    deployed_with,
    drill,
    in_flight,
    now_ms,
    physical_id,
    visible,
)
from tests.support.native import Native, batch, make_key
from tests.support.runbooks import followed
from tests.support.templates import CORE, read_template


def asked(service: AwsService, key: str, times: int = 6) -> list[int]:
    """How as many requests are answered, two at a time."""

    def ask(_: int) -> int:
        return httpx.get(f"{service.url}/v1/models", headers={"X-API-Key": key}, timeout=60).status_code

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(ask, range(times)))


def of_gateway(service: AwsService, statuses: list[int], route: str = "GET /v1/models") -> list[float]:
    """What the metric filter counts of these answers.

    The emulator writes no access log and counts by no filter: the lines are written as the template's format
    has them, and the template's pattern is worked out.
    """
    core = read_template(CORE)["Resources"]
    form = core["HttpStage"]["Properties"]["AccessLogSettings"]["Format"]["Fn::Sub"]
    form = form.replace("${ServiceName}", "tensafe").replace("$context.routeKey", route)
    lines = [form.replace("$context.status", str(status)) for status in statuses]
    logs, group, stream = service.stack.emulator.client("logs"), "/tensafe/access", uuid4().hex
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    events = [{"timestamp": now_ms(), "message": line} for line in lines]
    logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
    found = matching(lines, core["GatewayFailures"]["Properties"]["FilterPattern"])
    assert all(json.loads(line)["service"] == "tensafe" for line in found)
    return [1.0] * len(found)


@drill("service-errors", "http-5xx")
def test_service_errors(service: AwsService, operator: AwsOperator, key: str) -> None:
    """The table is out of reach for the API; a deployment of what was there before ends it."""
    watched, at_the_gateway, since_ms = alarm("service-errors"), alarm("http-5xx"), now_ms()
    with (
        followed("http-5xx", operator, URL=service.url) as book,
        deployed_with(service, "ApiFunction", **AWAY) as deploy_before,
    ):
        answers = asked(service, key)
        assert set(answers) == {503}
        told = watched.told(tailed(service, "api", since_ms))
        assert watched.in_alarm(told)
        assert at_the_gateway.in_alarm(of_gateway(service, answers))
        assert '"items":"unavailable"' in book.run("curl -s").replace(" ", "")
        # The probe's own 503 is counted neither here nor at the gateway.
        assert len(watched.told(tailed(service, "api", since_ms))) == len(told)
        for probe in PROBES:
            assert not at_the_gateway.in_alarm(of_gateway(service, [503] * 9, f"GET {probe}"))
        assert '"level":"ERROR"' in book.run("aws logs tail", "/tensafe/api")
        assert '"status":"503"' in book.run("aws logs tail", "/tensafe/access")
        deploy_before()
    assert not at_the_gateway.in_alarm(of_gateway(service, asked(service, key)))
    service.wait_ready()


@drill("authorizer-errors")
def test_authorizer(service: AwsService, operator: AwsOperator, key: str, tenant: str) -> None:
    """The table is out of reach for the authorizer alone: nobody gets in until it is deployed again."""
    watched, since_s = alarm("authorizer-errors"), time.time()
    request = {"headers": {"x-api-key": key}}
    with (
        followed("authorizer", operator, TENANT=tenant) as book,
        deployed_with(service, "AuthorizerFunction", **AWAY) as deploy_before,
    ):
        assert asked(service, key, 1) == [500]
        # The emulator counts the errors of a function that is invoked, and not those behind a route.
        with pytest.raises(RuntimeError, match="does not answer"):
            service.stack.invoke("AuthorizerFunction", request)
        assert watched.in_alarm(counted(service, watched.watched, since_s))
        assert "does not answer" in book.run("aws logs tail")
        configuration = book.run("aws lambda get-function-configuration")
        assert configuration["Environment"]["Variables"].items() >= AWAY.items()
        deploy_before()
        fresh = book.run("tensafe keys create")["key"]
    assert asked(service, fresh, 1) + asked(service, key, 1) == [200, 200]
    restored_s = time.time()
    assert service.stack.invoke("AuthorizerFunction", request)["isAuthorized"] is True
    assert not watched.in_alarm(counted(service, watched.watched, restored_s))


@drill("throttled")
def test_throttled(service: AwsService, operator: AwsOperator, key: str, tenant: str) -> None:
    """One caller's long poll holds the only execution: its key is ended, and there are more of them again."""
    watched, since_s = alarm("throttled"), time.time()
    native, other = Native(service, key), make_key(service, "patient")
    run = native.create()
    with followed("throttled", operator, TENANT=tenant) as book, ThreadPoolExecutor(1) as poll:
        with service.paused("trainer"), one_execution(service):
            waiting = native.submit(run, "forward_backward", batch())
            held = poll.submit(native.get, f"/v1/futures/{waiting}/result")
            wait_until(lambda: 429 in asked(service, key, 2), 20)
            assert set(asked(service, key, 12)) == {429}
            assert watched.in_alarm(counted(service, watched.watched, since_s))
            limits = book.run("aws lambda get-function-concurrency")
            assert limits["ReservedConcurrentExecutions"] == 1
            assert book.run("aws lambda get-account-settings")["AccountLimit"]
            book.run("aws logs tail")
            (mine,) = book.run("tensafe keys list")
            book.given(KEY_ID=mine["key_id"])
            assert book.run("tensafe keys revoke")["usable"] is False
            wait_until(lambda: set(asked(service, key, 2)) == {403}, 20)
            before = sum(counted(service, watched.watched, since_s))
            assert set(asked(service, key, 12)) == {403}  # by the authorizer, and no execution is asked for
            assert sum(counted(service, watched.watched, since_s)) == before
            assert book.run("aws lambda put-function-concurrency")["ReservedConcurrentExecutions"] == 200
            assert set(asked(service, other)) == {200}
            assert sum(counted(service, watched.watched, since_s)) == before
        assert held.result(60).status_code == 401  # its long poll is over with the key


@contextmanager
def one_execution(service: AwsService) -> Iterator[None]:
    """In the block the API function may run once at a time."""
    with concurrency_kept(service, "ApiFunction"):
        service.stack.emulator.client("lambda").put_function_concurrency(
            FunctionName=physical_id(service, "ApiFunction"), ReservedConcurrentExecutions=1
        )
        yield


@drill("sweep-failures", "sweeper-errors")
def test_sweeper(service: AwsService, operator: AwsOperator) -> None:
    """The sweeper cannot reach the table: its failed event is kept, looked at, and taken out in the end."""
    watched, url = alarm("sweep-failures"), physical_id(service, "SweepFailures")
    errors, since_s = alarm("sweeper-errors"), time.time()
    assert visible(service, "SweepFailures") == 0
    with (
        followed("sweeper", operator, SWEEP_FAILURES_URL=url) as book,
        deployed_with(service, "SweeperFunction", **AWAY) as deploy_before,
    ):
        scheduled(service)
        wait_until(lambda: watched.in_alarm([visible(service, "SweepFailures")]), 60)
        assert "maintenance failed" in book.run("aws logs tail")
        (message,) = book.run("aws sqs receive-message")["Messages"]
        assert "not done: age" in message["Body"]
        # To look does not end the alarm.
        assert in_flight(service, "SweepFailures") == 0
        assert watched.in_alarm([visible(service, "SweepFailures")])
        # The emulator counts the errors of a function whose answer somebody waits for.
        with pytest.raises(RuntimeError, match="not done"):
            service.stack.invoke("SweeperFunction")
        assert errors.in_alarm(counted(service, errors.watched, since_s))
        deploy_before()
        mended_s = time.time()
        assert service.stack.invoke("SweeperFunction")["age"] >= 0
        assert not errors.in_alarm(counted(service, errors.watched, mended_s))
        book.run("aws sqs purge-queue")
    assert not watched.in_alarm([visible(service, "SweepFailures")])
    scheduled(service)
    assert not watched.in_alarm([visible(service, "SweepFailures")])


@drill("sweeper-silent")
def test_a_sweeper_that_is_not_called(service: AwsService, operator: AwsOperator) -> None:
    """The schedule was disabled: nobody calls, nothing fails, and only the missing calls are seen."""
    watched, url = alarm("sweeper-silent"), physical_id(service, "SweepFailures")
    events, rule = service.stack.emulator.client("events"), physical_id(service, "SweepEveryMinute")
    with (
        followed("sweeper-silent", operator, SWEEP_FAILURES_URL=url) as book,
        concurrency_kept(service, "SweeperFunction"),
    ):
        events.disable_rule(Name=rule)
        try:
            time.sleep(5)  # what was called before has ended, and is in the log
            since_ms = now_ms()
            time.sleep(62)  # a minute, and a second or two of the emulator's clock
            assert watched.in_alarm(calls(service, "sweeper", since_ms))
            assert book.run("aws events describe-rule")["State"] == "DISABLED"
            book.run("aws lambda get-function-concurrency")
            book.run("aws logs tail")
            assert not book.run("aws sqs receive-message").get("Messages")
            assert not alarm("sweep-failures").in_alarm([visible(service, "SweepFailures")])
            book.run("aws lambda put-function-concurrency")
            book.run("aws lambda delete-function-concurrency")
            book.run("aws events enable-rule")
        finally:
            events.enable_rule(Name=rule)
        wait_until(lambda: not watched.in_alarm(calls(service, "sweeper", since_ms)), 90)


def calls(service: AwsService, role: str, since_ms: int) -> list[float]:
    """Lambda's Invocations, by the platform's lines: the emulator counts no calls of a schedule."""
    lines = tailed(service, role, since_ms).splitlines()
    return [1.0 for line in lines if line.startswith("START RequestId")]


def scheduled(service: AwsService) -> None:
    """As the rule does every minute, and without waiting for the end."""
    name = physical_id(service, "SweeperFunction")
    service.stack.emulator.client("lambda").invoke(FunctionName=name, InvocationType="Event", Payload=b"{}")
