"""What the built functions tell X-Ray's daemon of an event: its calls of AWS, nothing of what it is about."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from tensafe.services import Services
from tests.integration.lambdas.conftest import URL
from tests.integration.lambdas.test_api import BASE, a_run
from tests.integration.lambdas.test_authorizer import event as to_authorize
from tests.integration.lambdas.test_log_lines import optim_step
from tests.support.lambda_runtime import Crashed, Function, http_event, http_response
from tests.support.native import batch, example
from tests.support.xray_daemon import Subsegment, XrayDaemon

AWAY = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
UNIT = 0x5AFE_C0DE_D15C_0BA1
PLAIN = {"id", "name", "start_time", "end_time", "parent_id", "trace_id", "type", "namespace"}


@pytest.fixture
def daemon() -> Iterator[XrayDaemon]:
    one = XrayDaemon()
    yield one
    one.close()


@pytest.fixture
def traced(function: Callable[..., Function], daemon: XrayDaemon) -> Callable[..., Function]:
    return lambda name, **changed: function(name, AWS_XRAY_DAEMON_ADDRESS=daemon.address, **changed)


def own(found: list[Subsegment], role: str) -> Subsegment:
    """The handler's."""
    (one,) = [one for one in found if one["name"] == f"## {role}"]
    return one


def calls(found: list[Subsegment]) -> dict[str, Subsegment]:
    """The last of each operation."""
    return {one["aws"]["operation"]: one for one in found if one.get("namespace") == "aws"}


def ended(role: str) -> Callable[[list[Subsegment]], bool]:
    return lambda found: any(one["name"] == f"## {role}" for one in found)


def test_a_request_s_calls_lie_in_lambda_s_segment_and_lead_to_request_and_operation(
    traced: Callable[..., Function], daemon: XrayDaemon, services: Services, key: str
) -> None:
    run, api = a_run(services), traced("api")
    request_id = optim_step(api, key, run.stream_id, 1)
    found = daemon.when(ended("api"))
    root, parent = (part.partition("=")[2] for part in api.last.trace.split(";")[:2])
    assert {one["trace_id"] for one in found} == {root}
    handler = own(found, "api")
    assert (handler["parent_id"], handler["http"]) == (parent, {"response": {"status": 200}})
    assert handler["annotations"] == {
        "ColdStart": True,
        "Service": "tensafe",
        "request_id": request_id,
        "stream": run.stream_id,
        "seq": 1,
        "kind": "optim_step",
    }
    others = [one for one in found if one is not handler]
    assert {one["parent_id"] for one in others} == {handler["id"]}
    by_name = calls(found)
    assert {one["name"] for one in others} == {"dynamodb", "kms", "sqs"}
    assert {"GetItem", "TransactWriteItems", "Decrypt", "SendMessage"} <= by_name.keys()
    assert by_name["GetItem"]["aws"]["table_name"] == "tensafe-items"
    assert by_name["SendMessage"]["aws"]["queue_url"].endswith(".fifo")
    for one in others:
        assert one.keys() == PLAIN | {"aws", "http"}
        assert one["http"] == {"response": {"status": 200}}
        assert one["aws"]["region"] == "eu-central-1"
        assert handler["start_time"] <= one["start_time"] <= one["end_time"] <= handler["end_time"]
    assert all(json.loads(line)["level"] == "INFO" for line in api.logged.splitlines() if line[0] == "{")


def test_each_event_has_its_own_trace_and_one_that_is_not_sampled_none(
    traced: Callable[..., Function], daemon: XrayDaemon, services: Services, key: str
) -> None:
    run, api = a_run(services), traced("api")
    traces = []
    for seq in (1, 2):
        optim_step(api, key, run.stream_id, seq)
        traces.append(api.last.trace.partition(";")[0].removeprefix("Root="))
    found = daemon.when(lambda found: sum(one["name"] == "## api" for one in found) == 2)
    assert [one["trace_id"] for one in found if one["name"] == "## api"] == traces
    body = json.dumps({"model_id": run.stream_id, "seq_id": 3, "adam_params": {}}).encode()
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    event = http_event("POST", f"{URL}/api/v1/optim_step", headers=headers, body=body)
    assert http_response(api.invoke(event, sampled=False)).status == 200
    assert daemon.received() == found
    assert services.outcomes.get(run, 3).seq == 3


def test_a_call_that_gets_no_answer_is_a_fault_of_which_the_kind_is_told(
    traced: Callable[..., Function], daemon: XrayDaemon, key: str
) -> None:
    api = traced("api", **AWAY)
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    event = http_event("POST", f"{URL}/api/v1/create_session", headers=headers, body=b"{}")
    assert http_response(api.invoke(event)).status == 503
    found = daemon.when(ended("api"))
    assert own(found, "api")["fault"] is True
    assert own(found, "api")["http"] == {"response": {"status": 503}}
    (call,) = calls(found).values()
    assert call["fault"] is True
    assert "http" not in call
    (cause,) = call["cause"]["exceptions"]
    assert cause.keys() == {"id", "type", "remote"}
    assert (cause["type"], cause["remote"]) == ("EndpointConnectionError", False)
    assert b"127.0.0.1:9" not in b"".join(daemon.datagrams)


def test_a_refused_condition_is_no_fault(
    traced: Callable[..., Function], daemon: XrayDaemon, services: Services, key: str
) -> None:
    run, api = a_run(services), traced("api")
    optim_step(api, key, run.stream_id, 1)
    optim_step(api, key, run.stream_id, 1)  # a retry, which the store's condition finds
    found = daemon.when(lambda found: sum(one["name"] == "## api" for one in found) == 2)
    (refused,) = [one for one in found if one.get("error")]
    assert (refused["aws"]["operation"], refused["http"]["response"]["status"]) == ("TransactWriteItems", 400)
    (cause,) = refused["cause"]["exceptions"]
    assert (cause["type"], cause["remote"]) == ("TransactionCanceledException", True)
    assert not any(one.get("fault") for one in found)


def test_a_handler_that_fails_says_its_exception_s_type_alone(
    traced: Callable[..., Function], daemon: XrayDaemon
) -> None:
    sweeper = traced("sweeper", **AWAY)
    with pytest.raises(Crashed, match="not done"):
        sweeper.invoke({"source": "aws.events"})
    handler = own(daemon.when(ended("sweeper")), "sweeper")
    assert handler["fault"] is True
    (cause,) = handler["cause"]["exceptions"]
    assert (cause.keys(), cause["type"]) == ({"id", "type", "remote"}, "RuntimeError")
    assert b"not done" not in b"".join(daemon.datagrams)


def test_nothing_that_a_request_holds_is_in_any_datagram(
    traced: Callable[..., Function], daemon: XrayDaemon, services: Services, key: str
) -> None:
    """Tokens, texts, a unit and keys, in requests that are taken, refused and cannot be read."""
    run, api, canary = a_run(services), traced("api"), f"canary{uuid4().hex}"
    tokens = [211, 187, 143, 239, 101, 173, 229, 131]
    headers = {"X-API-Key": key, "Content-Type": "application/json"}

    def ask(path: str, body: Any, status: int) -> None:
        event = http_event("POST", f"{URL}{path}", headers=headers, body=json.dumps(body).encode())
        answer = http_response(api.invoke(event))
        assert answer.status == status, answer.body

    named = f"/v1/training_clients/{run.stream_id}"
    ask(f"{named}/forward_backward", batch({**example(tokens), "dp_unit_id": UNIT}), 202)
    asked = {"prompt": tokens, "num_samples": 1, "sampling_params": {"max_tokens": 4, "stop": [canary]}}
    ask(f"{named}/sample", asked, 202)
    ask(f"{named}/forward_backward", batch(example([*tokens, 10**6])), 422)
    ask(f"/v1/{canary}", {"a": canary}, 404)
    ask("/v1/training_clients", {"base_model": canary}, 404)
    headers["X-API-Key"] = f"tml-{canary}{canary}"
    ask("/v1/training_clients", {"base_model": BASE}, 401)
    traced("authorizer").invoke(to_authorize(x_api_key=headers["X-API-Key"]))
    daemon.when(lambda found: sum(one["name"].startswith("## ") for one in found) == 7)
    sent = b"".join(daemon.datagrams)
    assert run.stream_id.encode() in sent  # the search finds what is there
    for pattern in (canary, key[24:], str(UNIT), *(sep.join(map(str, tokens[:3])) for sep in (",", ", "))):
        assert pattern.encode() not in sent, pattern
