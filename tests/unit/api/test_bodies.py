"""Bodies are capped as they arrive and parsed once the caller is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from tensafe.api.bodies import DATA_MAX_BYTES, JSON_MAX_BYTES, parse
from tensafe.contracts.errors import PayloadTooLarge
from tests.unit.operations.world import World


class Anything(BaseModel):
    text: str = ""


def test_more_names_than_any_request_has() -> None:
    assert parse(Anything, b'{"text":"' + b":" * 60_000 + b'"}').text
    with pytest.raises(PayloadTooLarge, match="50000 names"):
        parse(Anything, b"{" + b",".join(b'"%d" \n:1' % i for i in range(50_001)) + b"}")


@pytest.mark.parametrize(
    ("path", "cap"),
    [
        ("/v1/training_clients", JSON_MAX_BYTES),
        ("/v1/training_clients/s-1:train:0/forward_backward", DATA_MAX_BYTES),
        ("/v1/training_clients/s-1:train:0/sample", DATA_MAX_BYTES),
        ("/api/v1/create_session", JSON_MAX_BYTES),
        ("/api/v1/asample", DATA_MAX_BYTES),
        ("/api/v1/optim_step", JSON_MAX_BYTES),
    ],
)
def test_the_caps(world: World, http: TestClient, path: str, cap: int) -> None:
    world.run()

    def chunks(size: int) -> Iterator[bytes]:
        for _ in range(size // 65536):
            yield b" " * 65536

    assert http.post(path, content=b" " * (cap + 1)).status_code == 413
    assert http.post(path, content=chunks(cap + 65536)).status_code == 413
    assert http.post(path, content=b" " * cap).status_code == 422


@pytest.mark.parametrize(
    "path", ["/v1/training_clients", "/api/v1/create_session", "/api/v1/forward_backward"]
)
def test_without_a_key_nothing_is_read(http: TestClient, path: str) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield b"x"

    async def go() -> int:
        transport = httpx.ASGITransport(http.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            return (await client.post(path, content=body())).status_code

    assert asyncio.run(go()) == 401
    assert read == []


def test_every_result_that_a_client_has_may_be_acknowledged_at_once(world: World, http: TestClient) -> None:
    """The SDK sends all ids since its last poll that succeeded; the colons in them name nothing."""
    sampler = world.sampler(f"s-{'0' * 32}:sample:0")
    ids = [f"{sampler.stream_id}:{10**9 + i}" for i in range(100_001)]
    body = {"target": {"sampling_session_id": sampler.stream_id}, "timeout": 0}

    def ask(known: list[str]) -> httpx.Response:
        return http.post("/api/v1/retrieve_futures", json={**body, "retrieved_request_ids": known})

    assert ask(ids[:-1]).status_code == 200
    one_more = ask(ids)
    assert (one_more.status_code, one_more.json()["error"]["field"]) == (422, "retrieved_request_ids")
    assert ask(["x" * 257]).status_code == 422
    assert ask(["x" * 256] * 40_000).status_code == 413
