"""The functions' package over a moto that is a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tensafe.services import Services
from tests.support.aws_stack import Stack
from tests.support.lambda_runtime import Function, http_event, http_response
from tests.support.stack_fixtures import services, stack

__all__ = ["services", "stack"]

TENANT = "acme"
URL = "https://tensafe.example"


@pytest.fixture(scope="module")
def key(services: Services) -> str:
    return services.api_keys.create(TENANT, ["train", "sample"])[0]


@pytest.fixture(scope="module")
def function(
    built: Path, stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Function]]:
    """Starts functions: `function("api", timeout_s=1.0, TENSAFE_TABLE=None)`; None leaves a variable out."""
    started: list[Function] = []
    logs = tmp_path_factory.mktemp("log")

    def start(name: str, *, timeout_s: float = 29.0, **changed: str | None) -> Function:
        merged: Mapping[str, str | None] = {**stack.environment, **changed}
        environment = {name: value for name, value in merged.items() if value is not None}
        log = logs / f"{name}-{len(started)}.log"
        one = Function(built, f"tensafe.lambdas.{name}.handler", environment, log, timeout_s=timeout_s)
        started.append(one)
        return one

    yield start
    for one in started:
        one.close()


class ThroughLambda(httpx.BaseTransport):
    """Every request is an event of the function."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.events: list[dict[str, Any]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        event = http_event(
            request.method, str(request.url), headers=dict(request.headers), body=request.read()
        )
        self.events.append(event)
        answer = http_response(self.function.invoke(event))
        return httpx.Response(answer.status, headers=answer.headers, content=answer.body)


@pytest.fixture(scope="module")
def api(function: Callable[..., Function]) -> Function:
    return function("api")


@pytest.fixture
def http(api: Function, key: str) -> Iterator[httpx.Client]:
    """A client whose requests to the service are events, and whose others are HTTP."""
    mounts = {URL: ThroughLambda(api)}
    with httpx.Client(base_url=URL, headers={"X-API-Key": key}, mounts=mounts, timeout=60) as client:
        yield client


def sizes(built: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((built / "sizes.json").read_text())
    return found
