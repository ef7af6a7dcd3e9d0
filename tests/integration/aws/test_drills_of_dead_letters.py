"""Drills of the dead letters: nothing reads them, or what reads them fails. One is redriven afterwards."""

from __future__ import annotations

import json
import time

import pytest

from tensafe.operations.doorbell import sample_queue, train_queue
from tensafe.operations.leases import MAX_TRIES
from tensafe.services import Services
from tensafe_gpu.sampler.worker import SamplerSettings
from tests.integration.aws.test_workers import wait_until
from tests.support.alarms import alarm
from tests.support.aws_operator import AwsOperator, tailed
from tests.support.aws_service import AwsService
from tests.support.drills import (
    AWAY,
    again_after,
    counted,
    deployed_with,
    drill,
    in_flight,
    letters,
    now_ms,
    physical_id,
    unconsumed,
    visible,
)
from tests.support.native import Native, batch
from tests.support.runbooks import Book, followed
from tests.support.service import MODEL_NAME

SAMPLE = {"prompt": [5, 9, 301, 77], "sampling_params": {"max_tokens": 4, "temperature": 0.0}}
UNFIT = {"TENSAFE_TABLE": ""}
"""Variables with which a function does not start."""


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
                assert "Disabled" in states(book)
                enabled(book, queue)
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
            with unconsumed(service, f"{queue}-dead"):
                poison = given_up(service, services, native, run)
                seen_in_alarm(book, service, "sample")
            failed = native.wait(poison)
        assert failed.json()["error"]["code"] == "dead_letter"
        redriven(book, service, "sample", tenant)
        assert len(native.result(poison)["sequences"][0]["tokens"]) == 4
        assert book.run("tensafe ops show")["state"] == "completed"


@drill("sample-dead-letters", "dead-lettered")
def test_a_consumer_that_fails(service: AwsService, operator: AwsOperator, key: str, tenant: str) -> None:
    """It hands every letter back: none is ever visible when CloudWatch looks, and no error is counted.

    The alarm holds by the letters in flight. Once the table is back the letter is read, which is told too.
    """
    native, since_ms = Native(service, key), now_ms()
    run = native.create()
    with followed("dead-letters", operator, QUEUE_URL=physical_id(service, "SampleDeadQueue")) as book:
        with (
            service.paused("sampler"),
            service.services() as services,
            again_after(service, "SampleDeadQueue", 20),
            deployed_with(service, "DeadLettersFunction", **AWAY) as deploy_before,
        ):
            poison = given_up(service, services, native, run)
            handed_back = "dead message not settled"
            wait_until(lambda: handed_back in tailed(service, "dead-letters", since_ms), 60)
            wait_until(lambda: in_flight(service, "SampleDeadQueue") == 1, 30)
            assert visible(service, "SampleDeadQueue") == 0
            seen_in_alarm(book, service, "sample")
            assert set(states(book)) == {"Enabled"}
            assert not told_set_aside(service, since_ms)
            deploy_before()
            failed = native.wait(poison)
        assert failed.json()["error"]["code"] == "dead_letter"
        assert told_set_aside(service, since_ms)
        redriven(book, service, "sample", tenant)
        redriven_ms = now_ms()
        assert len(native.result(poison)["sequences"][0]["tokens"]) == 4
        assert book.run("tensafe ops show")["state"] == "completed"
    assert not told_set_aside(service, redriven_ms)


@drill("dead-letters-errors")
def test_a_consumer_that_does_not_start(service: AwsService) -> None:
    """A release brought variables that it cannot use; the one before is deployed again."""
    watched, since_s = alarm("dead-letters-errors"), time.time()
    event = {"Records": [{"messageId": "1", "body": json.dumps({"stream": "nobody"})}]}
    with deployed_with(service, "DeadLettersFunction", **UNFIT) as deploy_before:
        # The emulator counts the errors of a function that is invoked, and not those of its event sources.
        for _ in range(2):
            with pytest.raises(RuntimeError, match="DeadLettersFunction"):
                service.stack.invoke("DeadLettersFunction", event)
        assert watched.in_alarm(counted(service, watched.watched, since_s))
        deploy_before()
    mended_s = time.time()
    assert service.stack.invoke("DeadLettersFunction", event) == {"batchItemFailures": []}
    assert not watched.in_alarm(counted(service, watched.watched, mended_s))


def given_up(service: AwsService, services: Services, native: Native, run: str) -> str:
    """The future of a sample that three samplers took and none ended: its message is in the dead queue."""
    time.sleep(SamplerSettings().receive_wait_s + 0.5)  # the receive that it was stopped in has ended
    poison = native.submit(run, "sample", SAMPLE)
    stream, seq = poison.rsplit(":", 1)
    operation = services.outcomes.peek(stream, int(seq))
    assert operation is not None
    queue = sample_queue(MODEL_NAME)
    while operation.tries < MAX_TRIES or not unread(service, "sample"):
        for message in services.ports.queues.receive(queue, visibility_s=5, max_messages=10, wait_s=1):
            assert message.body["stream"] == stream
            operation = services.outcomes.start(operation, (), owner="doomed")
            services.ports.queues.extend(queue, message.receipt, 0)
    return poison


def unread(service: AwsService, queue: str) -> bool:
    """Whether the queue's alarm has its condition, by SQS's own counts."""
    return alarm(f"{queue}-dead-letters").in_alarm(letters(service, f"{queue.capitalize()}DeadQueue"))


def seen_in_alarm(book: Book, service: AwsService, queue: str) -> None:
    assert unread(service, queue)
    counts = book.run("aws sqs get-queue-attributes")["Attributes"]
    names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    assert sum(int(counts[name]) for name in names) == 1


def states(book: Book) -> list[str]:
    """Of the mappings that bring the dead letters to their function."""
    return [one["State"] for one in book.run("aws lambda list-event-source-mappings")["EventSourceMappings"]]


def enabled(book: Book, queue: str) -> None:
    """The mapping of the dead queue whose name has this in it, by the runbook's command."""
    mappings = book.run("aws lambda list-event-source-mappings")["EventSourceMappings"]
    (mapping,) = [one for one in mappings if queue in one["EventSourceArn"]]
    book.given(UUID=mapping["UUID"])
    assert book.run("aws lambda update-event-source-mapping")["State"] == "Enabled"


def told_set_aside(service: AwsService, since_ms: int) -> bool:
    """Whether an operation was dead-lettered since, by the metric that the alarm watches."""
    watched = alarm("dead-lettered")
    return watched.in_alarm(watched.told(tailed(service, "dead-letters", since_ms)))


def redriven(book: Book, service: AwsService, queue: str, tenant: str) -> None:
    """The runbook, from the mended consumer to the redriven operation."""
    wait_until(lambda: not unread(service, queue))
    enabled(book, f"{queue}-")
    assert set(states(book)) == {"Enabled"}
    assert "operation set aside as a dead letter" in book.run("aws logs tail")
    (letter,) = [one for one in book.run("tensafe dead-letters list") if one["tenant"] == tenant]
    book.given(LETTER_ID=letter["id"], RUN_ID=letter["run"], SEQ=str(letter["seq"]))
    assert book.run("tensafe dead-letters show")["cause"] == letter["cause"]
    assert book.run("tensafe dead-letters redrive")["redriven"] is True
