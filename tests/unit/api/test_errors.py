"""Every deliberate error has its status, and all that leaves the edge has one shape."""

from __future__ import annotations

import inspect
import logging

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tensafe.api.errors import STATUS, status_of
from tensafe.contracts import errors
from tensafe.services import Services
from tensafe.storage import ports

SECRET = "prompt-text-51be"
EXPECTED = {
    errors.InvalidRequest: (422, 422),
    errors.Unsupported: (422, 422),
    errors.PayloadTooLarge: (413, 413),
    errors.Unauthenticated: (401, 401),
    errors.Forbidden: (403, 403),
    errors.NotFound: (404, 404),
    errors.Conflict: (409, 422),
    errors.Gone: (410, 404),
    errors.RunBlocked: (409, 422),
    errors.BudgetExceeded: (422, 422),
    errors.QuotaExceeded: (429, 422),
    errors.RateLimited: (429, 429),
    errors.Unavailable: (503, 503),
    errors.TooManyRequests: (429, 429),
    errors.HeRefused: (503, 503),
    errors.IntegrityError: (500, 500),
    errors.ConfigurationError: (500, 500),
    errors.TensafeError: (500, 500),
    ports.StorageError: (503, 503),
    ports.UnwrapFailed: (500, 500),
}
RETRIED_BY_THE_SDK = {408, 409, 429}


def test_no_error_of_the_contracts_is_forgotten() -> None:
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass)}
    deliberate = {kind for kind in kinds if issubclass(kind, errors.TensafeError)}
    assert deliberate == set(EXPECTED) - {ports.StorageError, ports.UnwrapFailed}
    assert set(STATUS) <= set(EXPECTED)


@pytest.mark.parametrize("kind", EXPECTED)
def test_status_by_type(kind: type[errors.TensafeError]) -> None:
    error = errors.RateLimited("said", retry_after_s=3) if kind is errors.RateLimited else kind("said")
    native, tinker = EXPECTED[kind]
    assert (status_of(error, tinker=False), status_of(error, tinker=True)) == (native, tinker)
    if error.category == "user" and native < 500:
        assert tinker not in RETRIED_BY_THE_SDK


def test_a_subclass_has_the_status_of_its_nearest_parent() -> None:
    class TooManyExamples(errors.PayloadTooLarge):
        """Some new refusal."""

    assert status_of(TooManyExamples("x"), tinker=False) == 413
    assert status_of(ports.StaleReceipt("x"), tinker=True) == 503


def raising(http: TestClient, error: Exception) -> None:
    app = http.app
    assert isinstance(app, FastAPI)

    @app.get("/raise")
    async def fail() -> None:
        raise error


@pytest.mark.parametrize(
    ("error", "status", "code", "told"),
    [
        (errors.NotFound("no such thing", field="x"), 404, "not_found", "no such thing"),
        (errors.Unavailable("the queue is busy"), 503, "unavailable", "the queue is busy"),
        (errors.IntegrityError(SECRET), 500, "integrity_error", "the service failed"),
        (ports.StorageError(SECRET), 503, "storage_error", "the service failed"),
        (RuntimeError(SECRET), 500, "internal_error", "the service failed"),
        (UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET), 500, "internal_error", "the service"),
    ],
)
def test_the_shape(
    http: TestClient,
    error: Exception,
    status: int,
    code: str,
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raising(http, error)
    with caplog.at_level(logging.INFO, "tensafe"):
        answer = http.get("/raise")
    body = answer.json()["error"]
    assert (answer.status_code, body["code"], body["field"]) == (status, code, getattr(error, "field", None))
    assert body["message"].startswith(told)
    assert answer.json()["detail"] == body["message"]
    assert body["request_id"].startswith("req-")
    assert SECRET not in answer.text
    assert all(SECRET not in record.getMessage() for record in caplog.records)
    if status == 503:
        assert answer.headers["retry-after"] == "1"
    if status >= 500:
        record = next(record for record in caplog.records if record.levelno == logging.ERROR)
        assert record.__dict__["request_id"] == body["request_id"]
        assert record.__dict__["route"] == "/raise"


def test_a_query_that_fastapi_refuses_has_the_shape_too(http: TestClient) -> None:
    answer = http.get("/v1/training_clients?limit=many")
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "limit")
    assert http.get("/v1/training_clients?limit=0").json()["error"]["field"] == "limit"


def test_401_says_how_to_authenticate(http: TestClient, services: Services) -> None:
    answer = http.get("/v1/training_clients", headers={"X-API-Key": "tml-no"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="tensafe"')
    assert "tensafe keys create" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (errors.Unavailable("the store is busy"), 429, "the store is busy"),
        (ports.StorageError(SECRET), 429, "the service failed"),
        (errors.IntegrityError(SECRET), 200, "[integrity_error] the service failed"),
        (ports.UnwrapFailed(SECRET), 200, "[unwrap_failed] the service failed"),
        (RuntimeError(SECRET), 200, "[internal_error] the service failed"),
        (errors.Gone("erased"), 404, "erased"),
    ],
)
@pytest.mark.parametrize("place", ["api_keys", "outcomes"])
def test_a_future_is_never_answered_with_a_5xx(
    http: TestClient,
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    told: str,
    place: str,
) -> None:
    """The SDK would ask again at once, for ever; also if the caller could not be told."""

    def fail(*_: object) -> None:
        raise error

    name = "authenticate" if place == "api_keys" else "get"
    monkeypatch.setattr(getattr(services, place), name, fail)
    monkeypatch.setattr(services.streams, "get", lambda *_: None)
    answer = http.post("/api/v1/retrieve_future", json={"request_id": "s-1:train:0:1"})
    body = answer.json()
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, "1" if status == 429 else None)
    assert SECRET not in answer.text
    if status == 200:
        assert (body["category"], body["error"].startswith(told)) == ("server", True)
        assert answer.headers.get("x-request-id", "req-") in body["error"]
    else:
        assert body["error"]["message"].startswith(told)
    assert (status == 404) != any(record.levelno == logging.ERROR for record in caplog.records)
