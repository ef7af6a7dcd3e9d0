"""Who may call what: the seed accepted any bearer token; here nothing but an issued key is."""

from __future__ import annotations

import re
import secrets
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.native import Native, api_keys, is_stranger, make_key, problem, without_request_id
from tests.support.service import Service

PUBLIC = {"/healthz", "/readyz", "/version", "/api/v1/healthz"}
SIGNED = "/api/v1/external_files/{artifact_id}/{file}"


@pytest.fixture(scope="module")
def routes(service: Service) -> list[tuple[str, str]]:
    """Every (method, path) of the OpenAPI document but the public ones, parameters filled in."""
    document = httpx.get(f"{service.url}/openapi.json").json()
    found = [
        (method, re.sub(r"\{[^}]+\}", "x", path))
        for path, operations in document["paths"].items()
        for method in operations
        if path not in PUBLIC and path != SIGNED
    ]
    assert len(found) > 40
    return found


def credentials(service: Service) -> Iterator[dict[str, str]]:
    """None, and what people try."""
    yield {}
    own = make_key(service, "somebody")
    prefix, secret = own[:20], own[21:]
    forged = [
        "anything",
        "dev",
        "test-token",
        "tml-x",
        "tml-" + "0" * 16 + "-" + "A" * 43,
        f"tml-{secrets.token_hex(8)}-{secret}",
        f"{prefix}-{secrets.token_urlsafe(32)}",
        own[:-1],
        own + "x",
        own.upper(),
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
        "' OR 1=1 --",
        "x" * 5000,
    ]
    for token in forged:
        yield {"Authorization": f"Bearer {token}"}
        yield {"X-API-Key": token}
    yield {"Authorization": f"Basic {own}"}
    yield {"Authorization": own}
    yield {"Cookie": f"key={own}"}
    # The header that is there counts, however good the other one is.
    yield {"X-API-Key": "wrong", "Authorization": f"Bearer {own}"}


def test_auth_01_arbitrary_bearer_tokens_are_refused_everywhere(
    service: Service, routes: list[tuple[str, str]]
) -> None:
    answers = set()
    with httpx.Client(base_url=service.url) as http:
        every = list(credentials(service))
        for i, (method, path) in enumerate(routes):
            # All routes with some, and one route with all of them.
            for headers in every if i == 0 else (every[0], every[1], every[9]):
                answer = http.request(method, path, headers=headers)
                assert is_stranger(service, answer), (method, path, headers, answer.text)
                if headers or isinstance(service, Service):  # a gateway says 401 to none, 403 to a wrong one
                    answers.add(without_request_id(answer)[1])
    assert len(answers) == 1  # nothing tells a malformed key from an unknown one


def test_what_needs_no_key_tells_nothing_of_any_tenant(service: Service) -> None:
    for path in PUBLIC:
        assert httpx.get(service.url + path).status_code == 200
    assert sorted(httpx.get(f"{service.url}/version").json()) == ["version"]
    for path in ("/docs", "/redoc", "/v1/training_clients/"):
        assert httpx.get(service.url + path, follow_redirects=False).status_code == 404


def test_a_signed_url_needs_its_signature(service: Service) -> None:
    path = f"{service.url}/api/v1/external_files/art-x/adapter_config.json"
    assert problem(httpx.get(path))[0] == 422
    query = {"tenant": "acme", "expires": 2**40, "signature": "x"}
    assert problem(httpx.get(path, params=query))[:2] == (404, "not_found")


def test_a_key_is_accepted_in_either_header(service: Service) -> None:
    key = make_key(service, "either")
    for headers in (
        {"X-API-Key": key},
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"bearer {key}"},
    ):
        assert httpx.get(f"{service.url}/v1/training_clients", headers=headers).status_code == 200


@pytest.mark.one_machine("a gateway collects the body")
def test_a_body_is_not_waited_for_before_the_key_is_known(service: Service) -> None:
    head = (
        b"POST /v1/training_clients HTTP/1.1\r\nHost: x\r\nX-API-Key: no\r\nContent-Length: 10000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("scopes", "path", "allowed"),
    [
        (("sample",), "/v1/training_clients", False),
        (("sample",), "/api/v1/create_model", False),
        (("sample",), "/api/v1/create_session", True),
        (("train",), "/api/v1/asample", False),
        (("train",), "/api/v1/create_sampling_session", False),
        (("train",), "/v1/training_clients", True),
        (("audit",), "/api/v1/create_session", False),
        (("audit",), "/api/v1/retrieve_future", False),
        (("audit",), "/v1/training_clients", False),
        (("admin",), "/v1/training_clients", True),
        (("admin",), "/api/v1/asample", True),
    ],
)
def test_a_scope_opens_its_own_routes(
    service: Service, scopes: tuple[str, ...], path: str, allowed: bool
) -> None:
    answer = Native(service, make_key(service, "scoped", *scopes)).post(path, {})
    assert problem(answer)[:2] == ((422, "invalid_request") if allowed else (403, "forbidden"))


def test_a_future_is_open_to_the_scope_that_could_have_submitted_it(service: Service) -> None:
    trainer = Native(service, make_key(service, "futures"))
    run = trainer.create()
    future = trainer.submit(run, "optim_step")
    for scope in ("sample", "audit"):
        other = Native(service, make_key(service, "futures", scope))
        for answer in (
            other.get(f"/v1/futures/{future}"),
            other.get(f"/v1/futures/{future}/result"),
            other.post(f"/v1/futures/{future}/cancel"),
            other.post("/api/v1/retrieve_future", {"request_id": future}),
            other.post("/api/v1/cancel_future", {"request_id": future}),
        ):
            assert problem(answer)[:2] == (403, "forbidden")


def test_an_expired_key_is_refused(service: Service) -> None:
    client = Native(service, make_key(service, "brief", lifetime_s=2))
    assert client.get("/v1/training_clients").status_code == 200
    deadline = time.monotonic() + 4
    while client.get("/v1/training_clients").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert is_stranger(service, client.get("/v1/training_clients"))


def test_a_revoked_key_is_refused_within_a_second(service: Service) -> None:
    key = make_key(service, "leaver")
    client = Native(service, key)
    key_id = key.split("-")[1]
    assert client.get("/v1/training_clients").status_code == 200
    with api_keys(service) as keys:
        keys.revoke(key_id)
    revoked_at = time.monotonic()
    while client.get("/v1/training_clients").status_code == 200:
        assert time.monotonic() < revoked_at + 1.0
    assert is_stranger(service, client.get("/v1/training_clients"))


def test_a_wait_ends_within_a_second_of_revocation(service: Service) -> None:
    """In the middle of a long poll, and while other requests keep the key in the API's memory."""
    key = make_key(service, "leaver")
    client = Native(service, key)
    run = client.create()
    body = {"model_id": run, "seq_id": 2, "adam_params": {}}  # seq 1 never comes: it waits
    future = client.post("/api/v1/optim_step", body).json()["request_id"]
    asks = [lambda: client.get(f"/v1/futures/{future}/result")]
    asks.append(lambda: client.post("/api/v1/retrieve_future", {"request_id": future}))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask) for ask in asks]
        busy_until = time.monotonic() + 2  # so that both are past the authorizer on AWS
        while time.monotonic() < busy_until:
            client.get("/v1/training_clients")
        with api_keys(service) as keys:
            keys.revoke(key.split("-")[1])
        revoked_at = time.monotonic()
        for answer in waiting:
            assert problem(answer.result())[:2] == (401, "unauthenticated")
        assert time.monotonic() - revoked_at < 1.2  # and a little for the machine


def test_the_command_line_revokes(service: Service) -> None:
    key = service.create_key("leaver")
    client = Native(service, key)
    assert client.get("/v1/training_clients").status_code == 200
    service.tensafe("keys", "revoke", key.split("-")[1])
    time.sleep(0.6)
    assert is_stranger(service, client.get("/v1/training_clients"))


def test_the_keys_owner_is_told_as_the_tinker_command_line_reads_it(service: Service) -> None:
    from tinker.cli.auth_api import SelfApiKeyResponse, TinkerAuthApi

    key = make_key(service, "acme")
    with httpx.Client() as http:
        found = TinkerAuthApi(http, base_url=service.url).get_self_api_key(key)
    assert isinstance(found, SelfApiKeyResponse)
    assert (found.key_id, found.details.org_details.name) == (int(key.split("-")[1], 16), "acme")
