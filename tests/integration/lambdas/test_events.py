"""The functions behind queues and schedules: one message's failure is its own, a sweep rings again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from tensafe.operations.doorbell import train_queue
from tensafe.operations.records import OpKind, OpState, StreamKind
from tensafe.operations.submissions import Submission
from tensafe.services import Services, wire
from tests.integration.lambdas.test_api import BASE, a_run
from tests.support.lambda_runtime import Function


def record(number: int, body: object, group: str | None = None) -> dict[str, Any]:
    """One message as SQS's event source hands it over."""
    attributes = {"ApproximateReceiveCount": "1"} | ({} if group is None else {"MessageGroupId": group})
    return {
        "messageId": f"m-{number}",
        "receiptHandle": "r",
        "body": body if isinstance(body, str) else json.dumps(body),
        "attributes": attributes,
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:ts-train-x-dead.fifo",
        "awsRegion": "eu-central-1",
    }


def failures(answer: dict[str, Any]) -> list[str]:
    return [one["itemIdentifier"] for one in answer["batchItemFailures"]]


def test_of_a_batch_of_dead_letters_those_alone_stay_that_cannot_be_settled(
    function: Callable[..., Function], services: Services
) -> None:
    poisoned, unlucky = a_run(services), a_run(services)
    operation = services.outcomes.get(poisoned, 0)
    for _ in range(3):
        operation = services.outcomes.start(operation, ())
    sampler, writes = services.streams.creation("s-77:sample:0", "acme", StreamKind.SAMPLER, BASE)
    services.ports.items.write(writes)
    # No such item can be: the store refuses it, as it would anything while it is down.
    broken = {"stream": sampler.stream_id, "seq": 10**2000}
    answer = function("dead_letters").invoke(
        {
            "Records": [
                record(1, {"stream": poisoned.stream_id}, "a"),
                record(2, broken, "b"),
                record(3, {"stream": unlucky.stream_id}, "c"),
                record(4, {"stream": unlucky.stream_id}, "b"),
                record(5, "not ours"),
                record(6, {"stream": "absent"}),
                record(7, {"stream": "no stream\n"}),
            ]
        }
    )
    assert failures(answer) == ["m-2", "m-4"]  # 4 is behind 2 in its group
    assert services.outcomes.get(poisoned, 0).state is OpState.FAILED
    assert [letter.stream_id for letter in services.dead_letters.list()] == [poisoned.stream_id]
    assert services.outcomes.get(unlucky, 0).state is OpState.PENDING


def test_a_sweep_rings_again_for_what_nobody_heard_of(
    function: Callable[..., Function], services: Services
) -> None:
    an_hour_ago = wire(services.ports, services.models, clock_ms=lambda: int(time.time() - 3600) * 1000)
    run = a_run(services)
    an_hour_ago.submissions.submit(run, Submission(1, OpKind.NOOP, b"{}", ring=False))
    queue = train_queue(BASE)
    while messages := services.ports.queues.receive(queue, visibility_s=60, max_messages=10):
        for message in messages:
            services.ports.queues.delete(queue, message.receipt)
    done = function("sweeper").invoke({"source": "aws.events"})
    assert done["sweep"] >= 1
    found = services.ports.queues.receive(queue, visibility_s=60, max_messages=10, wait_s=1)
    assert {"stream": run.stream_id} in [message.body for message in found]
