"""A client of the native face for tests: plain httpx, and what the tests ask for most."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from tensafe.auth.keys import ApiKeys
from tensafe.storage.sqlite_items import SqliteItems
from tests.support.aws_service import AwsService
from tests.support.service import MODEL_NAME, Service

TOKENS = [5, 9, 301, 77, 45, 210, 33, 8, 120, 64, 199, 18]


@contextmanager
def api_keys(service: Service | AwsService) -> Iterator[ApiKeys]:
    """The service's key store, opened as a second process would."""
    if isinstance(service, AwsService):
        with service.services() as services:
            yield services.api_keys
        return
    items = SqliteItems(service.data_dir / "items.db")
    try:
        yield ApiKeys(items)
    finally:
        items.close()


def make_key(service: Service | AwsService, tenant: str, *scopes: str, lifetime_s: int | None = None) -> str:
    """A key, without the second that the command line takes to start."""
    with api_keys(service) as keys:
        return keys.create(tenant, scopes or ("train", "sample"), lifetime_s=lifetime_s)[0]


def example(tokens: Sequence[int] = TOKENS, **inputs: Any) -> dict[str, Any]:
    """A datum of next-token cross-entropy; `inputs` replace or add loss inputs."""
    given = {"target_tokens": list(tokens[1:]), "weights": [1.0] * (len(tokens) - 1), **inputs}
    return {"tokens": list(tokens[:-1]), "loss_fn_inputs": {k: v for k, v in given.items() if v is not None}}


def batch(*examples: dict[str, Any], loss_fn: str = "cross_entropy", **more: Any) -> dict[str, Any]:
    """The body of a forward_backward."""
    return {"data": list(examples) or [example()], "loss_fn": loss_fn, **more}


class Native:
    """The native face with one key."""

    def __init__(self, service: Service | AwsService, key: str) -> None:
        self.http = httpx.Client(base_url=service.url, headers={"X-API-Key": key}, timeout=60)

    def post(self, path: str, body: object = None, **headers: str) -> httpx.Response:
        """POST JSON; keyword arguments become headers, '_' for '-'."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(path, json={} if body is None else body, headers=named)

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path)

    def create(self, **body: Any) -> str:
        """A run whose adapter is made; its id."""
        wanted = {"base_model": MODEL_NAME, "lora": {"rank": 4, "seed": 1}, **body}
        answer = self.post("/v1/training_clients", wanted)
        assert answer.status_code == 201, answer.text
        self.result(answer.json()["future"]["id"])
        return str(answer.json()["training_client"]["id"])

    def submit(self, run: str, operation: str, body: object = None, **headers: str) -> str:
        """Submit an operation of a run; its future's id."""
        answer = self.post(f"/v1/training_clients/{run}/{operation}", body, **headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def wait(self, future: str, timeout_s: float = 120) -> httpx.Response:
        """The answer of /result once it is no 202."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            answer = self.get(f"/v1/futures/{future}/result")
            if answer.status_code != 202:
                return answer
        raise TimeoutError(f"{future} did not end")

    def result(self, future: str) -> dict[str, Any]:
        answer = self.wait(future)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def do(self, run: str, operation: str, body: object = None, **headers: str) -> dict[str, Any]:
        """Submit and wait."""
        return self.result(self.submit(run, operation, body, **headers))

    def train(self, run: str, steps: int = 1) -> list[float]:
        """Some steps on TOKENS; the losses."""
        losses = []
        for _ in range(steps):
            losses.append(self.do(run, "forward_backward", batch())["metrics"]["loss:sum"])
            self.do(run, "optim_step", {"learning_rate": 3e-3})
        return losses

    def save(self, run: str, name: str) -> dict[str, Any]:
        """Save the state; the artifact as its listing tells it."""
        self.do(run, "save_state", {"name": name})
        listed = self.get(f"/v1/training_clients/{run}/artifacts").json()["artifacts"]
        return dict(next(artifact for artifact in listed if artifact["name"] == name))

    def content(self, artifact_id: str) -> bytes:
        return self.get(f"/v1/artifacts/{artifact_id}/content").raise_for_status().content


def problem(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and field of an error, after its shape has been checked."""
    body = answer.json()
    assert sorted(body) == ["detail", "error"], body
    error = body["error"]
    assert sorted(error) == ["code", "field", "message", "request_id"], error
    assert error["message"]
    assert error["message"] == body["detail"]
    assert error["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, error["code"], error["field"]


def is_stranger(service: Service | AwsService, answer: httpx.Response) -> bool:
    """Whether it refuses the caller's credential: by the API, or on AWS by the gateway in front of it."""
    gateways = ((401, {"message": "Unauthorized"}), (403, {"message": "Forbidden"}))
    if isinstance(service, AwsService) and (answer.status_code, answer.json()) in gateways:
        return True
    bearer = answer.headers.get("www-authenticate", "").startswith("Bearer")
    return bearer and problem(answer)[:2] == (401, "unauthenticated")


def without_request_id(answer: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """All that a client can see, but for what is new with every request."""
    request_id = answer.headers.get("x-request-id", "none: a gateway's").encode()
    volatile = ("x-request-id", "apigw-requestid", "date")
    headers = {name: value for name, value in answer.headers.items() if name not in volatile}
    return answer.status_code, answer.content.replace(request_id, b"REQUEST"), headers
