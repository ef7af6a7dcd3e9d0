"""Results by either face: announced, listed, failed, cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpx import Response
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tensafe.api.tinker.futures import METADATA_FIRST_BYTES
from tests.unit.operations.world import TENANT, World

LARGE = b'{"x":"' + b"a" * (METADATA_FIRST_BYTES + 1) + b'"}'


def test_a_large_result_is_announced_once(world: World, http: TestClient) -> None:
    """The SDK fails if it is announced again after it has said that it knows the size."""
    sampler = world.sampler()
    for seq, data in ((1, LARGE), (2, b"{}")):
        world.complete(sampler, world.submit(sampler, seq), data)
    target = {"target": {"sampling_session_id": sampler.stream_id}}
    listed = http.post("/api/v1/retrieve_futures", json=target).json()
    sizes = {done["request_id"]: done["response_payload_uncompressed_size"] for done in listed["completions"]}
    assert sizes == {"s-1:sample:0:1": len(LARGE), "s-1:sample:0:2": 2}
    assert listed["cursor"] == 2
    known = {"request_id": "s-1:sample:0:1", "allow_metadata_only": False}
    assert http.post("/api/v1/retrieve_future", json=known).content == LARGE
    unknown = {**known, "allow_metadata_only": True}
    assert http.post("/api/v1/retrieve_future", json=unknown).json() == {
        "status": "complete_metadata",
        "response_payload_size": len(LARGE),
    }
    small = {"request_id": "s-1:sample:0:2", "allow_metadata_only": True}
    assert http.post("/api/v1/retrieve_future", json=small).content == b"{}"


def test_what_has_not_ended_is_held_for_the_whole_poll(world: World, http: TestClient) -> None:
    run = world.run()
    world.submit(run, 1)
    for call in (
        lambda: http.post("/api/v1/retrieve_future", json={"request_id": "s-1:train:0:1"}),
        lambda: http.get("/v1/futures/s-1:train:0:1/result?timeout_s=0.2"),
    ):
        began = time.monotonic()
        answer = call()
        assert time.monotonic() - began >= 0.2
        assert answer.status_code in (408, 202)


@pytest.mark.parametrize(
    "ask",
    [
        lambda http: http.post("/api/v1/retrieve_future", json={"request_id": "s-1:train:0:1"}),
        lambda http: http.post(
            "/api/v1/retrieve_futures", json={"target": {"sampling_session_id": "s-1:sample:0"}}
        ),
        lambda http: http.get("/v1/futures/s-1:train:0:1/result"),
    ],
)
@pytest.mark.parametrize("ends", [False, True])
def test_a_key_that_is_revoked_while_it_waits_is_told_nothing_more(
    world: World, ask: Callable[[TestClient], Response], ends: bool
) -> None:
    run, sampler = world.run(), world.sampler()
    waited = [(run, world.submit(run, 1)), (sampler, world.submit(sampler, 1))]
    key, record = world.services.api_keys.create(TENANT, ["train", "sample"])
    app = create_app(world.services, EdgeLimits(long_poll_s=20))
    with TestClient(app, headers={"X-API-Key": key}) as http, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, http)
        time.sleep(0.3)
        world.services.api_keys.revoke(record.key_id)
        revoked_at = time.monotonic()
        for stream, operation in waited if ends else ():
            world.complete(stream, operation)
        assert answer.result().status_code == 401
        assert time.monotonic() - revoked_at < 1


def test_one_tenant_waits_for_so_much_at_once_and_no_more(world: World) -> None:
    run, others = world.run(), world.run("s-2:train:0", tenant="another")
    world.submit(others, 1)
    operations = [world.submit(run, seq) for seq in (1, 2, 3)]
    world.complete(run, operations[0])
    keys = [world.services.api_keys.create(TENANT, ["train", "sample"])[0] for _ in range(2)]
    another, _ = world.services.api_keys.create("another", ["train"])
    app = create_app(world.services, EdgeLimits(long_poll_s=0.6, waits_per_tenant=2))

    def ask(http: TestClient, seq: int, key: str = keys[0], run: str = run.stream_id) -> Response:
        body = {"request_id": f"{run}:{seq}"}
        return http.post("/api/v1/retrieve_future", json=body, headers={"X-API-Key": key})

    with TestClient(app) as http, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, http, seq, key) for seq, key in zip((2, 3), keys, strict=True)]
        time.sleep(0.3)
        refused = ask(http, 2)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "too_many_requests"
        assert ask(http, 1).status_code == 200  # there is nothing to wait for
        assert ask(http, 1, another, others.stream_id).status_code == 408
        assert {answer.result().status_code for answer in waiting} == {408}
        assert ask(http, 2).status_code == 408


def test_an_answer_of_408_says_how_it_stands(world: World, http: TestClient) -> None:
    world.submit(world.run(), 1)
    answer = http.post("/api/v1/retrieve_future", json={"request_id": "s-1:train:0:1"})
    assert answer.json() == {"type": "try_again", "request_id": "s-1:train:0:1", "queue_state": "active"}


def test_a_failure_is_200_for_the_sdk_and_422_elsewhere(world: World, http: TestClient) -> None:
    run = world.run()
    world.fail(run, world.submit(run, 1))
    told = http.post("/api/v1/retrieve_future", json={"request_id": "s-1:train:0:1"})
    assert (told.status_code, told.json()) == (200, {"error": "[invalid_request] no", "category": "user"})
    native = http.get("/v1/futures/s-1:train:0:1/result")
    assert (native.status_code, native.json()["error"]["code"]) == (422, "invalid_request")
    assert http.get("/v1/futures/s-1:train:0:1").json()["state"] == "failed"


def test_a_run_erased_while_somebody_waits(world: World, http: TestClient) -> None:
    run = world.run()
    world.submit(run, 1)
    world.services.streams.erase(run.stream_id, run.tenant)
    assert http.get("/v1/futures/s-1:train:0:1/result").status_code == 410
    gone = http.post("/api/v1/retrieve_future", json={"request_id": "s-1:train:0:1"})
    assert gone.status_code == 404  # 410 would have the SDK submit it again


def test_an_expired_result_is_gone(world: World, http: TestClient) -> None:
    run = world.run()
    world.complete(run, world.submit(run, 1))
    world.later(8 * 86_400)
    assert http.get("/v1/futures/s-1:train:0:1/result").status_code == 410
