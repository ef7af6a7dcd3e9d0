"""Drills of what tasks and queues do: an alarm's condition is brought about, what it watches is read, its
runbook is followed to its last command, and the condition has ended.
"""

from __future__ import annotations

import json

from tensafe.operations.records import OpKind, OpState
from tensafe.operations.submissions import Submission
from tensafe.services import wire
from tests.integration.aws.test_workers import wait_until
from tests.support.alarms import alarm
from tests.support.aws_operator import AwsOperator, tailed
from tests.support.aws_service import AwsService
from tests.support.aws_tasks import EcsServices
from tests.support.drills import drill, now_ms, physical_id
from tests.support.native import Native, batch, example
from tests.support.runbooks import followed

SAMPLE = {"prompt": [5, 9, 301, 77], "sampling_params": {"max_tokens": 4, "temperature": 0.0}}


@drill("operation-age")
def test_operation_age(service: AwsService, operator: AwsOperator, ecs: EcsServices, key: str) -> None:
    watched, since_ms = alarm("operation-age"), now_ms()
    run = Native(service, key).create()
    url = physical_id(service, "TrainQueue")
    with service.services() as services, followed("operation-age", operator, QUEUE_URL=url) as book:
        stream = services.streams.find(run)
        assert stream is not None
        an_hour_ago = wire(services.ports, services.models, clock_ms=lambda: now_ms() - 3_600_000)
        with service.paused("trainer"):
            an_hour_ago.submissions.submit(stream, Submission(1, OpKind.NOOP, b"{}", ring=False))
            service.stack.invoke("SweeperFunction")
            wait_until(lambda: watched.in_alarm(watched.told(tailed(service, "sweeper", since_ms))), 20)
            assert run in {one["run"] for one in book.run("tensafe runs list")}
            assert book.run("aws ecs list-tasks")["taskArns"]
            counts = {one["serviceName"]: one for one in book.run("aws ecs describe-services")["services"]}
            assert counts["trainer"]["desiredCount"] == ecs.desired("trainer") == 1
            assert "ApproximateNumberOfMessages" in book.run("aws sqs get-queue-attributes")["Attributes"]
        wait_until(lambda: services.outcomes.get(stream, 1).state is OpState.COMPLETED)
    assert not watched.in_alarm([service.stack.invoke("SweeperFunction")["age"]])


@drill("lease-churn")
def test_lease_churn(service: AwsService, operator: AwsOperator, ecs: EcsServices, key: str) -> None:
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
    with followed("lease-churn", operator) as book:
        assert "run dropped: LeaseLost" in book.run("aws logs tail")
        book.run("aws ecs list-tasks")
        assert set(runs) <= {one["run"] for one in book.run("tensafe runs list")}
    size = len(log.read_text())
    for run in runs:
        assert native.do(run, "forward_backward", batch())["metrics"]["loss:sum"] > 0
    assert not watched.in_alarm(watched.told(log.read_text()[size:]))


@drill("privacy-budget")
def test_privacy_budget(service: AwsService, operator: AwsOperator, key: str, tenant: str) -> None:
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
    with followed("privacy-budget", operator, DOMAIN="letters", TENANT=tenant) as book:
        assert "4.37" in json.dumps(book.run("tensafe privacy show"))
        assert len(book.run("tensafe privacy ledger")) >= 1
    native.do(run, "forward_backward", data)
    refused = native.wait(native.submit(run, "optim_step", {"learning_rate": 1e-3}))
    assert refused.json()["error"]["code"] == "privacy_budget_exceeded"


@drill("he-unavailable")
def test_he_unavailable(service: AwsService, operator: AwsOperator, ecs: EcsServices, key: str) -> None:
    """A request demands encryption of what no adapter holder has, which is what a sampler on AWS can refuse.

    An adapter holder that is killed and started again is drilled on one machine
    (tests/integration/service/test_private.py): there are none on AWS yet.
    """
    watched, native = alarm("he-unavailable"), Native(service, key)
    run = native.create()
    log = service.stack.tasks.log("sampler")
    size = len(log.read_text())
    refused = native.wait(native.submit(run, "sample", {**SAMPLE, "execution_policy": "HE_REQUIRED"}))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "he_not_offered")
    wait_until(lambda: watched.in_alarm(watched.told(log.read_text()[size:])), 10)
    with followed("he-unavailable", operator) as book:
        described = book.run("aws ecs describe-services")["services"]
        assert {one["serviceName"] for one in described} == {"adapter-holder", "sampler"}
        book.run("aws logs tail", "/tensafe/adapter-holder")
        assert '"event":"sample he_not_offered"' in book.run("aws logs tail", "/tensafe/sampler")
        book.run("aws ecs update-service")
        assert ecs.described("adapter-holder")["deployments"]
    size = len(log.read_text())
    assert native.do(run, "sample", SAMPLE)["sequences"]
    assert not watched.in_alarm(watched.told(log.read_text()[size:]))
