"""The seq of a refused operation is read from whatever arrived, and filled."""

from __future__ import annotations

import json

import pytest
import zstandard
from starlette.testclient import TestClient

from tensafe.api.bodies import JSON_MAX_BYTES
from tensafe.api.context import BodyTooLarge
from tensafe.api.tinker.refusals import json_address, protobuf_address
from tensafe.contracts.errors import InvalidRequest
from tensafe.operations.records import OpKind, OpState
from tests.unit.operations.world import World
from tests.unit.wire.messages import request

RUN = "s-1:train:0"
REFUSED = InvalidRequest("refused")
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def body(seq: int = 1, examples: int = 3) -> bytes:
    message = request(examples)
    message.model_id, message.seq_id = RUN, seq
    return bytes(message.SerializeToString())


def test_json_says_its_address() -> None:
    whole = json.dumps({"model_id": RUN, "seq_id": 4, "x": ["\u00e9" * 50]}, ensure_ascii=False).encode()
    for raw, error in (
        (whole, REFUSED),
        (whole[:-30], REFUSED),
        (whole[:-31], REFUSED),
        (b"", BodyTooLarge(1, whole)),
        (b"", BodyTooLarge(1, whole[:-31])),
    ):
        assert json_address(raw, error) == (RUN, 4)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model_id":1,"seq_id":1}',
        b'{"model_id":"a","seq_id":true}',
        b"[" * 10**5,
    ],
)
def test_json_that_does_not_say_it(raw: bytes) -> None:
    assert json_address(raw, REFUSED) is None


def test_a_number_at_the_cut_is_none() -> None:
    cut = json.dumps({"model_id": RUN, "seq_id": 1234}).encode()[:-3]
    assert cut.endswith(b"12")
    assert json_address(b"", BodyTooLarge(1, cut)) is None


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["optim_step", "save_weights", "load_weights"])
def test_the_seq_of_json_over_the_cap_is_filled(
    world: World, http: TestClient, path: str, chunked: bool
) -> None:
    run = world.run()
    raw = json.dumps({"model_id": RUN, "seq_id": 1, "user_metadata": {"k": "v" * JSON_MAX_BYTES}}).encode()
    content = iter([raw[:70_000], raw[70_000:]]) if chunked else raw
    answer = http.post(f"/api/v1/{path}", content=content)
    assert answer.status_code == 413
    operation = world.op(run, 1)
    assert (operation.state, operation.failure and operation.failure.code) == (
        OpState.FAILED,
        "payload_too_large",
    )


def test_protobuf_says_it_damaged_compressed_or_cut_short() -> None:
    whole = body(7)
    frame = zstandard.compress(body(7, examples=3000))
    for raw, encoding, error in (
        (whole, None, REFUSED),
        (whole[:100], None, REFUSED),
        (whole + b"\xff" * 50, None, REFUSED),
        (frame, "zstd", REFUSED),
        (frame[:-2], " ZSTD ", REFUSED),
        (b"", None, BodyTooLarge(1, whole)),
        (b"", "zstd", BodyTooLarge(1, frame)),
    ):
        assert protobuf_address(raw, encoding, error) == (RUN, 7)


@pytest.mark.parametrize("encoding", [None, "zstd", "gzip"])
def test_protobuf_that_does_not_say_it(encoding: str | None) -> None:
    for raw in (b"", b"\0" * 50, b"\xff" * 50, b"\x28\xb5\x2f\xfd" + b"\xff" * 50):
        assert protobuf_address(raw, encoding, REFUSED) is None


def test_a_bomb_is_not_unpacked_for_its_address() -> None:
    frame = zstandard.ZstdCompressor().compress(body(3) + b"\0" * 200_000_000)
    assert protobuf_address(frame, "zstd", REFUSED) == (RUN, 3)


@pytest.mark.parametrize(
    ("raw", "headers"),
    [
        (body(1)[:90], {}),
        (zstandard.compress(body(1, examples=3000))[:-2], {"Content-Encoding": "zstd"}),
        (body(1) + b"\0" * 17_000_000, {}),
    ],
)
def test_the_seq_of_what_was_refused_is_filled(
    world: World, http: TestClient, raw: bytes, headers: dict[str, str]
) -> None:
    run = world.run()
    answers = [
        http.post("/api/v1/forward_backward", content=raw, headers={**PROTOBUF, **headers}) for _ in range(2)
    ]
    for answer in answers:  # the second is the SDK's retry of a lost answer
        assert (answer.status_code, answer.json()) == (200, {"request_id": f"{RUN}:1", "model_id": RUN})
    operation = world.op(run, 1)
    assert (operation.state, operation.failure and operation.failure.category) == (OpState.FAILED, "user")
    told = http.post("/api/v1/retrieve_future", json={"request_id": f"{RUN}:1"}).json()
    assert operation.failure is not None
    assert operation.failure.message in told["error"]


def test_data_for_a_seq_that_was_given_up_fail_as_it_did(world: World, http: TestClient) -> None:
    """It came after the gap was closed: a 4xx would stop the client for good."""
    run = world.run()
    world.services.submissions.reject(run, 1, OpKind.NOOP, InvalidRequest("seq_id 1 never arrived"))
    answer = http.post("/api/v1/forward_backward", content=body(1), headers=PROTOBUF)
    assert answer.json()["request_id"] == f"{RUN}:1"
    told = http.post("/api/v1/retrieve_future", json={"request_id": f"{RUN}:1"}).json()
    assert told == {"error": "[invalid_request] seq_id 1 never arrived", "category": "user"}


@pytest.mark.parametrize("seq", [1, 100_000])
def test_data_without_a_place_of_their_own_are_refused(world: World, http: TestClient, seq: int) -> None:
    """Taken by another operation, or out of range: there is no future to answer with."""
    run = world.run()
    world.submit(run, 1)
    answer = http.post("/api/v1/forward_backward", content=body(seq), headers=PROTOBUF)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "seq_id")
    assert world.op(run, 1).state is OpState.PENDING


def test_data_for_a_run_that_is_not_the_callers_or_is_erased_are_refused(
    world: World, http: TestClient
) -> None:
    world.run(RUN, tenant="globex")
    assert http.post("/api/v1/forward_backward", content=body(1), headers=PROTOBUF).status_code == 404
    assert http.post("/api/v1/forward_backward", content=body(1)[:90], headers=PROTOBUF).status_code == 422
    world.services.streams.erase(RUN, "globex")
    assert http.post("/api/v1/forward_backward", content=body(1), headers=PROTOBUF).status_code == 404


def test_what_was_refused_for_its_seq_or_belongs_to_somebody_else_leaves_nothing(
    world: World, http: TestClient
) -> None:
    mine, theirs = world.run(), world.run("s-2:train:0", tenant="globex")
    step = {"model_id": RUN, "seq_id": 1, "adam_params": {"learning_rate": 0.1}}
    assert http.post("/api/v1/optim_step", json=step).status_code == 200
    step["adam_params"] = {"learning_rate": 0.2}
    assert http.post("/api/v1/optim_step", json=step).status_code == 422
    assert world.op(mine, 1).state is OpState.PENDING
    step = {"model_id": theirs.stream_id, "seq_id": 1, "adam_params": {"nothing": 1}}
    assert http.post("/api/v1/optim_step", json=step).status_code == 422
    assert [operation.seq for operation in world.log(theirs)] == [0]


def test_a_save_for_another_session_is_the_same_and_one_with_another_ttl_is_not(
    world: World, http: TestClient
) -> None:
    world.run()
    save = {"model_id": RUN, "seq_id": 1, "sampling_session_seq_id": 0, "kind": "snapshot"}
    first = http.post("/api/v1/save_weights_for_sampler", json=save)
    again = http.post("/api/v1/save_weights_for_sampler", json={**save, "sampling_session_seq_id": 1})
    assert (again.status_code, again.json()) == (200, first.json())
    for other in ({**save, "ttl_seconds": 7200}, {"model_id": RUN, "seq_id": 1, "path": "named"}):
        refused = http.post("/api/v1/save_weights_for_sampler", json=other)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "seq_id")
