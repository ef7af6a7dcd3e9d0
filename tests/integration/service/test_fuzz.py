"""Schemathesis over the OpenAPI document, with a valid key: no 5xx, nothing undocumented, one error shape."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase

from tests.support.native import make_key
from tests.support.service import MODEL_NAME, Service
from tests.support.tinker_http import TinkerHttp

pytestmark = pytest.mark.one_machine("holds answers to the API's document, which has none of a gateway's own")

EXAMPLES_PER_ROUTE = 12
_TRIES = hypothesis.settings(
    max_examples=EXAMPLES_PER_ROUTE,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
WAITING = {"/api/v1/retrieve_future", "/api/v1/retrieve_futures", "/v1/futures/{future_id}/result"}


@schemathesis.serializer("application/x-protobuf")
def _protobuf(_: Any, value: Any) -> bytes:
    """The document says only that it is binary."""
    return bytes(getattr(value, "data", value))


@pytest.fixture(scope="module")
def client(service: Service) -> TinkerHttp:
    return TinkerHttp(service, make_key(service, f"fuzz-{uuid4().hex[:8]}"))


@pytest.fixture(scope="module")
def operations(service: Service) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    assert len(found) > 45
    return found


@pytest.fixture(autouse=True)
def _alive(service: Service) -> Iterator[None]:
    """No process dies of it."""
    before = {role: service.role_pids(role) for role in ("api", "trainer", "sampler")}
    yield
    assert {role: service.role_pids(role) for role in before} == before
    assert httpx.get(f"{service.url}/readyz").status_code == 200


def attack(operation: Any, client: TinkerHttp, known: dict[str, str]) -> dict[int, int]:
    """Try generated requests, with `known` values in place of ids; how often each status came."""
    seen: dict[int, int] = {}

    @_TRIES
    @hypothesis.given(case=operation.as_strategy())
    def attempt(case: Any) -> None:
        for name in set(case.path_parameters or {}) & set(known):
            case.path_parameters[name] = known[name]
        if isinstance(case.body, dict):
            for name in set(case.body) & set(known):
                case.body[name] = known[name]
        answer = case.call(headers={"X-API-Key": client.http.headers["x-api-key"]}, timeout=30)
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, answer.text
        case.validate_response(
            answer,
            checks=[
                schemathesis.checks.not_a_server_error,
                schemathesis.specs.openapi.checks.status_code_conformance,
                schemathesis.specs.openapi.checks.content_type_conformance,
                schemathesis.specs.openapi.checks.response_schema_conformance,
            ],
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attempt()
    return seen


def test_every_route_with_whatever_the_document_allows(operations: list[Any], client: TinkerHttp) -> None:
    counts: dict[int, int] = {}
    for operation in operations:
        for status, count in attack(operation, client, {}).items():
            counts[status] = counts.get(status, 0) + count
    assert sum(counts.values()) > EXAMPLES_PER_ROUTE * len(operations) / 2
    assert {200, 404, 422} <= set(counts)


def test_every_route_with_the_ids_of_a_real_run(operations: list[Any], client: TinkerHttp) -> None:
    session = client.session()
    run, own = client.new_run(session), client.create()
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": MODEL_NAME}
    client.ok("create_sampling_session", body)
    known = {
        "client_id": own,
        "run_id": own,
        "model_id": run,
        "session_id": session,
        "future_id": f"{run}:0",
        "request_id": f"{run}:0",
        "artifact_id": client.save(own, "saved")["id"],
        "base_model": MODEL_NAME,
        "sampler_id": f"{session}:sample:0",
        "sampling_session_id": f"{session}:sample:0",
        "tinker_path": f"tinker://{own}/weights/saved",
        "kind": "weights",
        "name": "saved",
    }
    accepted = 0
    for operation in operations:
        if operation.path not in WAITING and operation.method.upper() != "DELETE":
            accepted += sum(n for status, n in attack(operation, client, known).items() if status < 300)
    assert accepted > 15 * EXAMPLES_PER_ROUTE
