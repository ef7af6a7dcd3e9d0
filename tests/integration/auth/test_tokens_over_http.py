"""Tokens at the edge: as an API key is, in the same headers, on every route; the official SDK included."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tests.support.oidc_issuer import Issuer
from tests.support.sdk_in_memory import Edge, service_client
from tests.unit.operations.world import World


@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
def test_a_token_is_presented_as_a_key_is(app: FastAPI, issuer: Issuer, header: str) -> None:
    token = issuer.token()
    presented = token if header == "X-API-Key" else f"Bearer {token}"
    with TestClient(app) as http:
        assert http.get("/v1/training_clients", headers={header: presented}).status_code == 200


def test_the_scopes_of_the_token_are_its_rights(app: FastAPI, issuer: Issuer) -> None:
    with TestClient(app, headers={"X-API-Key": issuer.token(scope="audit")}) as http:
        answer = http.get("/v1/training_clients")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
        own = http.get("/api/v1/auth/apikey/me").json()
        assert own["details"]["org_details"]["name"] == "acme"


def test_a_forged_token_is_401_and_an_absent_issuer_503(app: FastAPI, issuer: Issuer) -> None:
    token = issuer.token()
    issuer.rotate("first")
    issuer.down = True
    with TestClient(app) as http:
        away = http.get("/v1/training_clients", headers={"Authorization": f"Bearer {token}"})
        assert (away.status_code, away.json()["error"]["code"]) == (503, "unavailable")
        assert away.headers["Retry-After"] == "1"
        no_key = http.get("/v1/training_clients", headers={"Authorization": "Bearer eyJ.e30.x"})
        assert (no_key.status_code, no_key.json()["error"]["code"]) == (401, "unauthenticated")


def test_a_slow_issuer_holds_up_nobody_with_an_api_key(
    app: FastAPI, issuer: Issuer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = world.services.api_keys.create("acme", ["train"])
    asked, go_on = threading.Event(), threading.Event()
    document = issuer.document

    def slowly(path: str) -> bytes | None:
        asked.set()
        go_on.wait(10)
        return document(path)

    monkeypatch.setattr(issuer, "document", slowly)
    with TestClient(app) as http, ThreadPoolExecutor(20) as pool:
        headers = {"X-API-Key": issuer.token()}
        waiting = [pool.submit(http.get, "/v1/training_clients", headers=headers) for _ in range(20)]
        assert asked.wait(10)
        began = time.monotonic()
        answer = http.get("/v1/training_clients", headers={"X-API-Key": key})
        assert answer.status_code == 200
        assert time.monotonic() - began < 2
        assert not any(one.done() for one in waiting)
        go_on.set()
        assert {one.result().status_code for one in waiting} == {200}
    assert issuer.requests == ["/.well-known/openid-configuration", "/jwks"]


def test_the_official_sdk_works_with_a_token_as_its_key(app: FastAPI, issuer: Issuer) -> None:
    with service_client(Edge(app), issuer.token()) as client:
        models = client.get_server_capabilities().supported_models
        assert [model.model_name for model in models] == ["acme/tiny"]


def test_a_wait_ends_with_the_token(issuer: Issuer, world: World) -> None:
    run = world.run(first=False)
    token = issuer.token(exp=int(time.time()) - 28)  # with the leeway it has one to two seconds left
    app = create_app(world.services, EdgeLimits(long_poll_s=20))
    with TestClient(app, headers={"X-API-Key": token}) as http:
        began = time.monotonic()
        answer = http.post("/api/v1/retrieve_future", json={"request_id": f"{run.stream_id}:0"})
        assert answer.status_code == 401
        assert 0.5 < time.monotonic() - began < 10
