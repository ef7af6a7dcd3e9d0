"""What the built function writes about a request: its id, and those of the event and of X-Ray's trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tensafe.services import Services
from tests.integration.lambdas.conftest import URL
from tests.integration.lambdas.test_api import a_run
from tests.support.lambda_runtime import Function, http_event, http_response


def optim_step(api: Function, key: str, run: str, seq: int, **headers: str) -> str:
    """The id of the request."""
    body = json.dumps({"model_id": run, "seq_id": seq, "adam_params": {}}).encode()
    named = {"X-API-Key": key, "Content-Type": "application/json", **headers}
    answer = http_response(
        api.invoke(http_event("POST", f"{URL}/api/v1/optim_step", headers=named, body=body))
    )
    assert answer.status == 200, answer.body
    return answer.headers["x-request-id"]


def test_a_line_leads_to_the_request_the_event_and_the_trace(
    function: Callable[..., Function], services: Services, key: str
) -> None:
    run, api = a_run(services), function("api")
    expected = []
    for seq in (1, 2):
        request_id = optim_step(api, key, run.stream_id, seq)
        trace_id = api.last.trace.partition(";")[0].removeprefix("Root=")
        expected.append((request_id, api.last.request_id, trace_id, seq == 1, seq))
    lines: list[dict[str, Any]] = [json.loads(one) for one in api.logged.splitlines() if one[0] == "{"]
    submitted = [one for one in lines if one.get("event") == "operation submitted"]
    names = ("request_id", "function_request_id", "xray_trace_id", "cold_start", "seq")
    assert [tuple(one[name] for name in names) for one in submitted] == expected
    for one in submitted:
        assert (one["role"], one["function_name"], one["function_version"]) == ("api", "tensafe", "$LATEST")
        assert one["function_memory_size"] == "1024"


def test_an_operation_lies_in_the_trace_that_x_ray_keeps_unless_its_client_has_one(
    function: Callable[..., Function], services: Services, key: str
) -> None:
    run, api = a_run(services), function("api")
    optim_step(api, key, run.stream_id, 1)
    root, parent = (part.partition("=")[2] for part in api.last.trace.split(";")[:2])
    span = f"00-{root[2:].replace('-', '')}-{parent}-01"
    assert services.outcomes.get(run, 1).traceparent == span
    own = f"00-{'a' * 32}-{'b' * 16}-01"
    optim_step(api, key, run.stream_id, 2, traceparent=own)
    assert services.outcomes.get(run, 2).traceparent == own
