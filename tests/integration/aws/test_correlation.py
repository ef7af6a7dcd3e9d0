"""service/test_correlation.py over template.yaml, but for what has the mark `one_machine`."""

from __future__ import annotations

import json

from tensafe.operations.streams import now_ms
from tests.integration.aws.test_workers import wait_until
from tests.integration.service.test_correlation import *  # noqa: F403 - with their fixtures
from tests.integration.service.test_correlation import finished
from tests.support.aws_operator import tailed
from tests.support.aws_service import AwsService
from tests.support.native import TOKENS, Native, batch, example


def lines_of(text: str, request_id: str) -> set[str]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {str(line.get("event")) for line in lines if line.get("request_id") == request_id}


def test_one_id_is_in_the_logs_of_the_function_and_of_the_task_that_heard_of_it_by_the_queue(
    service: AwsService, key: str
) -> None:
    """What a task logs of taking a run is of no operation: it has the id from SQS's message alone."""
    native, since_ms = Native(service, key), now_ms()

    def told(role: str, request_id: str) -> set[str]:
        return lines_of(service.stack.tasks.log(role).read_text(), request_id)

    body = {"base_model": service.model_name, "lora": {"rank": 2}}
    created = native.http.post("/v1/training_clients", json=body).json()
    run, future = created["training_client"]["id"], created["future"]
    native.result(future["id"])
    by_queue = future["request_id"]
    wait_until(lambda: {"run restored", "operation completed"} <= told("trainer", by_queue), 30)
    submitted = native.post(f"/v1/training_clients/{run}/forward_backward", batch(example(TOKENS)))
    by_log, answer = finished(native, submitted)
    assert answer.headers["x-submitted-by"] == by_log != by_queue
    wait_until(lambda: "operation completed" in told("trainer", by_log), 30)
    asked = {"prompt": TOKENS, "sampling_params": {"max_tokens": 2}}
    by_sample, answer = finished(native, native.post(f"/v1/training_clients/{run}/sample", asked))
    assert answer.headers["x-submitted-by"] == by_sample
    wait_until(lambda: "sample completed" in told("sampler", by_sample), 30)
    assert told("sampler", by_queue) | told("sampler", by_log) == set()
    for request_id in (by_queue, by_log, by_sample):
        wait_until(
            lambda one=request_id: "operation submitted" in lines_of(tailed(service, "api", since_ms), one)
        )
