"""Drills: an alarm's condition is brought about, what it watches is read, its runbook is followed.

`aws ...` of a runbook is here the same call of boto3, and `tensafe ...` the command itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from tensafe.operations.doorbell import train_queue
from tensafe.operations.leases import MAX_TRIES
from tensafe.operations.records import OpKind, OpState
from tensafe.operations.submissions import Submission
from tensafe.services import wire
from tests.integration.aws.test_workers import wait_until
from tests.support.alarms import alarm
from tests.support.aws_service import AwsService
from tests.support.native import Native, batch, example
from tests.support.service import MODEL_NAME


def tailed(service: AwsService, group: str, since_ms: int) -> str:
    """`aws logs tail /tensafe/GROUP`."""
    logs = service.stack.emulator.client("logs")
    pages = logs.get_paginator("filter_log_events").paginate(
        logGroupName=f"/tensafe/{group}", startTime=since_ms
    )
    return "\n".join(one["message"] for page in pages for one in page["events"])


def visible(service: AwsService, logical_id: str) -> float:
    """What CloudWatch calls ApproximateNumberOfMessagesVisible, by SQS's own name."""
    return float(attributes(service, logical_id)["ApproximateNumberOfMessages"])


def attributes(service: AwsService, logical_id: str) -> dict[str, str]:
    """`aws sqs get-queue-attributes --attribute-names All`."""
    url = service.stack.deployment.resources()[logical_id]
    sqs = service.stack.emulator.client("sqs")
    found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return found


@contextmanager
def unconsumed(service: AwsService, queue: str) -> Iterator[None]:
    """In the block nothing of the queue reaches its function."""
    functions = service.stack.emulator.client("lambda")
    mappings = functions.list_event_source_mappings()["EventSourceMappings"]
    (mapping,) = [one["UUID"] for one in mappings if one["EventSourceArn"].endswith(queue)]
    functions.update_event_source_mapping(UUID=mapping, Enabled=False)
    try:
        yield
    finally:
        functions.update_event_source_mapping(UUID=mapping, Enabled=True)


def printed(service: AwsService, *arguments: str) -> Any:
    return json.loads(service.tensafe(*arguments, "--json").stdout)


def now_ms() -> int:
    return int(time.time() * 1000)


def test_train_dead_letters(service: AwsService, key: str, tenant: str) -> None:
    """A message killed every worker and nothing consumes it; that is mended, and the letter redriven."""
    watched, since_ms = alarm("train-dead-letters"), now_ms()
    native, queue = Native(service, key), train_queue(MODEL_NAME)
    run = native.create()
    with service.paused("trainer"), service.services() as services:
        wait_until(lambda: not services.leases.held(run, margin_s=0), 30)
        poison = native.submit(run, "forward_backward", batch())
        operation = services.outcomes.first_open(run)
        assert operation is not None
        with unconsumed(service, f"{queue}-dead.fifo"):
            tries = 0
            while tries < MAX_TRIES or not visible(service, "TrainDeadQueue"):
                for message in services.ports.queues.receive(
                    queue, visibility_s=5, max_messages=10, wait_s=1
                ):
                    if message.body["stream"] != run:
                        continue  # another run's, which the trainer that stands still has let go
                    lease = services.leases.claim(run, f"doomed-{tries}")
                    assert lease is not None
                    operation = services.outcomes.start(operation, [lease.check])
                    services.leases.release(lease)
                    services.ports.queues.extend(queue, message.receipt, 0)
                    tries += 1
            assert watched.metric == "ApproximateNumberOfMessagesVisible"
            assert watched.in_alarm([visible(service, "TrainDeadQueue")])
        failed = native.wait(poison)
    assert failed.json()["error"]["code"] == "dead_letter"
    wait_until(lambda: not watched.in_alarm([visible(service, "TrainDeadQueue")]))
    assert "operation set aside as a dead letter" in tailed(service, "dead-letters", since_ms)
    (letter,) = printed(service, "dead-letters", "list", "--tenant", tenant)
    assert (letter["run"], letter["kind"]) == (run, "forward_backward")
    assert printed(service, "dead-letters", "show", letter["id"])["cause"] == letter["cause"]
    service.tensafe("dead-letters", "redrive", letter["id"])
    assert native.result(poison)["metrics"]["loss:sum"] > 0
    assert printed(service, "ops", "show", run, poison.rsplit(":", 1)[1])["state"] == "completed"


def test_operation_age(service: AwsService, key: str) -> None:
    watched, since_ms = alarm("operation-age"), now_ms()
    run = Native(service, key).create()
    with service.services() as services:
        stream = services.streams.find(run)
        assert stream is not None
        an_hour_ago = wire(services.ports, services.models, clock_ms=lambda: now_ms() - 3_600_000)
        with service.paused("trainer"):
            an_hour_ago.submissions.submit(stream, Submission(1, OpKind.NOOP, b"{}", ring=False))
            service.stack.invoke("SweeperFunction")
            wait_until(lambda: watched.in_alarm(watched.told(tailed(service, "sweeper", since_ms))), 20)
            assert run in {one["run"] for one in printed(service, "runs", "list", "--limit", "20")}
            assert "ApproximateNumberOfMessages" in attributes(service, "TrainQueue")
        wait_until(lambda: services.outcomes.get(stream, 1).state is OpState.COMPLETED)
    assert service.stack.invoke("SweeperFunction")["age"] < watched.threshold


def test_service_errors(service: AwsService, key: str) -> None:
    """The table is out of reach for the API; a deployment of what was there before ends it."""
    watched, since_ms = alarm("service-errors"), now_ms()
    functions = service.stack.emulator.client("lambda")
    name = service.stack.deployment.resources()["ApiFunction"]
    before = service.stack.deployment.function_environment("ApiFunction")

    def deploy(variables: dict[str, str]) -> None:
        functions.update_function_configuration(FunctionName=name, Environment={"Variables": variables})

    def asked(_: int) -> int:
        return httpx.get(f"{service.url}/v1/models", headers={"X-API-Key": key}, timeout=60).status_code

    deploy({**before, "AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:9"})
    try:
        with ThreadPoolExecutor(2) as pool:
            assert set(pool.map(asked, range(6))) == {503}
        assert watched.in_alarm(watched.told(tailed(service, "api", since_ms)))
        ready = httpx.get(f"{service.url}/readyz", timeout=60)
        assert ready.status_code == 503
        assert '"level":"ERROR"' in tailed(service, "api", since_ms)
    finally:
        deploy(before)
    assert asked(0) == 200
    service.wait_ready()


def test_lease_churn(service: AwsService, key: str) -> None:
    """A trainer stands still for longer than its leases, and another claims its runs: it drops them."""
    watched = alarm("lease-churn")
    native = Native(service, key)
    runs = [native.create() for _ in range(3)]
    log = service.stack.tasks.log("trainer")
    size = len(log.read_text())
    with service.services() as services:
        with service.paused("trainer"):
            for run in runs:
                wait_until(lambda run=run: not services.leases.held(run, margin_s=0), 30)
                lease = services.leases.claim(run, "another")
                assert lease is not None
                services.leases.release(lease)
        wait_until(lambda: watched.in_alarm(watched.told(log.read_text()[size:])), 30)
    assert set(runs) <= {one["run"] for one in printed(service, "runs", "list", "--limit", "20")}
    for run in runs:
        assert native.do(run, "forward_backward", batch())["metrics"]["loss:sum"] > 0


def test_privacy_budget(service: AwsService, key: str, tenant: str) -> None:
    watched, native = alarm("privacy-budget"), Native(service, key)
    optimizer = {
        "type": "tensafe_dp_adamw",
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "batch_size": 1,
        "max_participations": 2,
        "max_epsilon": 4.5,
        "domain": "letters",
    }
    log = service.stack.tasks.log("trainer")
    size = len(log.read_text())
    run = native.create(optimizer=optimizer)
    data = batch({**example(), "dp_unit_id": 1})
    native.do(run, "forward_backward", data)
    native.do(run, "optim_step", {"learning_rate": 1e-3})  # epsilon 4.377
    assert watched.in_alarm(watched.told(log.read_text()[size:]))
    shown = printed(service, "privacy", "show", "letters", "--tenant", tenant)
    assert "4.37" in json.dumps(shown)
    assert len(printed(service, "privacy", "ledger", "letters", "--tenant", tenant)) >= 1
    native.do(run, "forward_backward", data)
    refused = native.wait(native.submit(run, "optim_step", {"learning_rate": 1e-3}))
    assert refused.json()["error"]["code"] == "privacy_budget_exceeded"
