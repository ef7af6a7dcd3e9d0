"""Drills of what tasks and queues do: an alarm's condition is brought about, what it watches is read, its
runbook is followed to its last command, and the condition has ended.
"""

from __future__ import annotations

import json
import time

from tensafe.operations.doorbell import sample_queue, train_queue
from tensafe.operations.leases import MAX_TRIES
from tensafe.operations.records import OpKind, OpState
from tensafe.operations.submissions import Submission
from tensafe.services import wire
from tensafe_gpu.sampler.worker import SamplerSettings
from tests.integration.aws.test_workers import wait_until
from tests.support.alarms import alarm
from tests.support.aws_operator import AwsOperator, tailed
from tests.support.aws_service import AwsService
from tests.support.aws_tasks import EcsServices
from tests.support.drills import drill, now_ms, physical_id, unconsumed, visible
from tests.support.native import Native, batch, example
from tests.support.runbooks import Book, followed
from tests.support.service import MODEL_NAME

SAMPLE = {"prompt": [5, 9, 301, 77], "sampling_params": {"max_tokens": 4, "temperature": 0.0}}


@drill("train-dead-letters")
def test_train_dead_letters(service: AwsService, operator: AwsOperator, key: str, tenant: str) -> None:
    """A message killed every worker and nothing consumes it; that is mended, and the letter redriven."""
    native, queue = Native(service, key), train_queue(MODEL_NAME)
    run = native.create()
    with followed("dead-letters", operator, QUEUE_URL=physical_id(service, "TrainDeadQueue")) as book:
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
                seen_in_alarm(book, service, "train")
            failed = native.wait(poison)
        assert failed.json()["error"]["code"] == "dead_letter"
        redriven(book, service, "train", tenant)
        assert native.result(poison)["metrics"]["loss:sum"] > 0
        assert book.run("tensafe ops show")["state"] == "completed"


@drill("sample-dead-letters")
def test_sample_dead_letters(service: AwsService, operator: AwsOperator, key: str, tenant: str) -> None:
    """As above, of a standard queue: three samplers took the request and none ended it."""
    native, queue = Native(service, key), sample_queue(MODEL_NAME)
    run = native.create()
    with followed("dead-letters", operator, QUEUE_URL=physical_id(service, "SampleDeadQueue")) as book:
        with service.paused("sampler"), service.services() as services:
            time.sleep(SamplerSettings().receive_wait_s + 0.5)  # the receive that it was stopped in has ended
            poison = native.submit(run, "sample", SAMPLE)
            stream, seq = poison.rsplit(":", 1)
            operation = services.outcomes.peek(stream, int(seq))
            assert operation is not None
            with unconsumed(service, f"{queue}-dead"):
                while operation.tries < MAX_TRIES or not visible(service, "SampleDeadQueue"):
                    for message in services.ports.queues.receive(
                        queue, visibility_s=5, max_messages=10, wait_s=1
                    ):
                        assert message.body["stream"] == stream
                        operation = services.outcomes.start(operation, (), owner="doomed")
                        services.ports.queues.extend(queue, message.receipt, 0)
                seen_in_alarm(book, service, "sample")
            failed = native.wait(poison)
        assert failed.json()["error"]["code"] == "dead_letter"
        redriven(book, service, "sample", tenant)
        assert len(native.result(poison)["sequences"][0]["tokens"]) == 4
        assert book.run("tensafe ops show")["state"] == "completed"


def seen_in_alarm(book: Book, service: AwsService, queue: str) -> None:
    watched = alarm(f"{queue}-dead-letters")
    assert watched.watched.metric == "ApproximateNumberOfMessagesVisible"
    assert watched.in_alarm([visible(service, f"{queue.capitalize()}DeadQueue")])
    assert float(book.run("aws sqs get-queue-attributes")["Attributes"]["ApproximateNumberOfMessages"]) == 1


def redriven(book: Book, service: AwsService, queue: str, tenant: str) -> None:
    """The runbook, from the mended consumer to the redriven operation."""
    watched = alarm(f"{queue}-dead-letters")
    wait_until(lambda: not watched.in_alarm([visible(service, f"{queue.capitalize()}DeadQueue")]))
    assert "operation set aside as a dead letter" in book.run("aws logs tail")
    (letter,) = [one for one in book.run("tensafe dead-letters list") if one["tenant"] == tenant]
    book.given(LETTER_ID=letter["id"], RUN_ID=letter["run"], SEQ=str(letter["seq"]))
    assert book.run("tensafe dead-letters show")["cause"] == letter["cause"]
    assert book.run("tensafe dead-letters redrive")["redriven"] is True


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
