"""One id from the request through the log, the queue and the worker, and back with the answer."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx
import pytest

from tests.support.native import TOKENS, Native, batch, example
from tests.support.service import Service
from tests.support.tinker_http import TinkerHttp, training_message


def lines_with(service: Service, request_id: str, wanted: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """(role, event) of every line with this id, once the wanted ones are there."""
    deadline = time.monotonic() + 10
    while True:
        lines = (line for line in service.events() if line.get("request_id") == request_id)
        found = {(line["role"], line["event"]) for line in lines}
        if wanted <= found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def finished(native: Native, submitted: httpx.Response) -> tuple[str, httpx.Response]:
    """The id of the request that submitted, and the answer of `/result`."""
    assert submitted.status_code == 202, submitted.text
    state: dict[str, Any] = submitted.json()
    assert state["request_id"] == submitted.headers["x-request-id"]
    while True:
        answer = native.http.get(f"/v1/futures/{state['id']}/result", timeout=60)
        if answer.status_code != 202:
            return str(state["request_id"]), answer


@pytest.mark.one_machine("reads one machine's log files")
def test_one_id_is_in_the_log_of_the_edge_of_the_worker_and_in_the_result(service: Service, key: str) -> None:
    native = Native(service, key)
    run = native.create()
    wanted = {("api", "operation submitted"), ("trainer", "operation completed")}
    submitted = native.post(f"/v1/training_clients/{run}/forward_backward", batch(example(TOKENS)))
    request_id, answer = finished(native, submitted)
    assert (answer.status_code, answer.headers["x-submitted-by"]) == (200, request_id)
    assert answer.headers["x-request-id"] != request_id
    assert lines_with(service, request_id, wanted) == wanted
    wanted = {
        ("api", "operation submitted"),
        ("sampler", "sample completed"),
        ("trainer", "operation completed"),
    }
    asked = {"prompt": TOKENS, "sampling_params": {"max_tokens": 2}}
    request_id, answer = finished(native, native.post(f"/v1/training_clients/{run}/sample", asked))
    assert (answer.status_code, answer.headers["x-submitted-by"]) == (200, request_id)
    assert lines_with(service, request_id, wanted) >= wanted


def test_a_failure_names_the_request_that_submitted_it(service: Service, key: str) -> None:
    http = TinkerHttp(service, key)
    run = http.new_run(http.session())
    refused = http.data(training_message(run, 1, [5, 10**6, 9, 7]))
    told = http.future(refused.json()["request_id"]).json()
    assert f"(submitted by request {refused.headers['x-request-id']})" in told["error"]


@pytest.mark.one_machine("AWS has no page for Prometheus; aws/test_canaries_on_aws.py has its numbers")
def test_the_numbers_follow(service: Service, key: str) -> None:
    """Workers announce what they have counted every ten seconds."""
    native = Native(service, key)
    run = native.create()
    native.do(run, "forward_backward", batch(example(TOKENS)))
    wanted = re.compile(r'tensafe_operations_ended_total\{.*kind="forward_backward".*outcome="completed"')
    deadline = time.monotonic() + 30
    while not wanted.search(page := service.metrics()):
        assert time.monotonic() < deadline, page
        time.sleep(0.5)
    assert 'tensafe_requests_total{method="POST",route="/v1/training_clients",status="201"}' in page
    # The service is shared: operations of other tests may still wait.
    for number in ("oldest_operation_age_seconds ", 'scrape_failed{part="work"} 0', "dead_letters "):
        assert f"tensafe_{number}" in page
