"""The API function as Lambda would run it: cold start, binary bodies, caps, redirects, time-outs."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import zstandard

from tensafe.operations import layout
from tensafe.operations.records import OpKind, OpState, Result, StreamKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tensafe.wire.forward_backward import decode_request
from tests.integration.lambdas.conftest import TENANT, URL, ThroughLambda, sizes
from tests.support.aws_stack import Stack
from tests.support.cloud import MODEL
from tests.support.lambda_runtime import Function, InitFailed, TimedOut, TooLarge, http_event
from tests.support.tinker_http import PROTOBUF, training_message

BASE = str(MODEL["name"])
HEAVY = ("torch", "vllm", "scipy", "dp_accounting", "uvicorn", "tensafe_gpu", "transformers")


def a_run(services: Services) -> StreamRecord:
    """With its first operation in the log."""
    record, creation = services.streams.creation(
        f"{uuid4().hex}:train:0", TENANT, StreamKind.RUN, BASE, spec={"optimizer": {"type": "adamw"}}
    )
    services.submissions.create(record, creation, Submission(0, OpKind.NOOP, b"{}"))
    return record


def complete(services: Services, stream: StreamRecord, seq: int, data: bytes, media_type: str) -> None:
    running = services.outcomes.start(services.outcomes.get(stream, seq), ())
    services.outcomes.complete(stream, running, Result(media_type, data))


class TestPackage:
    def test_it_is_small_enough_and_holds_what_is_needed_alone(self, built: Path) -> None:
        assert sizes(built)["zipped_bytes"] <= 30_000_000
        assert sizes(built)["unzipped_bytes"] < 250 * 2**20
        assert [name for name in HEAVY if (built / "function" / name).exists()] == []


class TestStart:
    def test_key_01_the_package_without_its_kms_key_does_not_start(
        self, function: Callable[..., Function]
    ) -> None:
        with pytest.raises(InitFailed, match="TENSAFE_KMS_KEY_ID"):
            function("api", TENSAFE_KMS_KEY_ID=None).invoke({})

    def test_it_answers_and_stays_warm(self, http: httpx.Client, api: Function) -> None:
        assert http.get("/healthz").json() == {"status": "ok"}
        pid = api.pid
        assert http.get("/version").status_code == 200
        assert (api.pid, api.starts) == (pid, 1)

    def test_no_credential_no_answer(self, http: httpx.Client) -> None:
        answer = http.post("/api/v1/create_session", json={}, headers={"X-API-Key": "tml-x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")


class TestBodies:
    def test_a_protobuf_body_in_base64_becomes_an_operation(
        self, http: httpx.Client, services: Services
    ) -> None:
        run = a_run(services)
        message = training_message(run.stream_id, 1)
        body = zstandard.compress(message.SerializeToString())
        headers = {"Content-Type": PROTOBUF, "Content-Encoding": "zstd"}
        answer = http.post("/api/v1/forward_backward", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["request_id"] == f"{run.stream_id}:1"
        stored = services.outcomes.payload(run, 1)
        assert decode_request(stored).request.data[0].tokens.tolist()
        transport = http._mounts[next(iter(http._mounts))]
        assert isinstance(transport, ThroughLambda)
        (event,) = transport.events
        assert event["isBase64Encoded"] is True
        assert base64.b64decode(event["body"]) == body

    def test_a_chunk_of_the_advertised_size_arrives_and_a_larger_body_is_refused(
        self, http: httpx.Client, services: Services
    ) -> None:
        config = http.post("/api/v1/client/config", json={"sdk_version": "0.38.0"}).json()
        chunk_bytes = config["fwdbwd_max_chunk_bytes_count"]
        run = a_run(services)
        headers = {"Content-Type": PROTOBUF}
        for seq, size, code in ((1, chunk_bytes, "invalid_request"), (2, 4_450_000, "payload_too_large")):
            message = training_message(run.stream_id, seq).SerializeToString()
            body = message.ljust(size, b"\0")  # no message, which shows once all of it has arrived
            answer = http.post("/api/v1/forward_backward", content=body, headers=headers)
            assert answer.status_code == 200, answer.text  # refused data are a failed future
            operation = services.outcomes.get(run, seq)
            assert operation.failure is not None
            assert operation.failure.code == code

    def test_lambda_itself_takes_no_more_than_6_mb(self, http: httpx.Client) -> None:
        with pytest.raises(TooLarge):
            http.post(
                "/api/v1/forward_backward", content=b"x" * 5_000_000, headers={"Content-Type": PROTOBUF}
            )


class TestAnswers:
    @pytest.mark.parametrize("face", ["tinker", "native"])
    def test_a_result_over_4_mb_is_a_redirect_to_its_bytes(
        self, http: httpx.Client, services: Services, stack: Stack, face: str
    ) -> None:
        run = a_run(services)
        services.submissions.submit(run, Submission(1, OpKind.NOOP, b"{}"))
        data = b"\x08\x01" + b"r" * 4_000_000
        complete(services, run, 1, data, PROTOBUF)
        future = f"{run.stream_id}:1"
        if face == "tinker":
            answer = http.post("/api/v1/retrieve_future", json={"request_id": future})
        else:
            answer = http.get(f"/v1/futures/{future}/result")
        assert (answer.status_code, answer.headers["cache-control"]) == (303, "no-store")
        location = answer.headers["location"]
        assert location.startswith(stack.endpoint)
        followed = httpx.get(location)
        assert (followed.status_code, followed.headers["content-type"]) == (200, PROTOBUF)
        assert followed.content == data
        due = [item for shard in layout.due_shards() for item in services.ports.items.query(shard)]
        (note,) = [item for item in due if str(item.body.get("blob", "")) in location and "blob" in item.body]
        seconds = int(note.key.sort.split("/")[0]) / 1000 - time.time()
        assert 0 < seconds <= 900

    def test_a_binary_result_of_less_comes_as_it_is(self, http: httpx.Client, services: Services) -> None:
        run = a_run(services)
        services.submissions.submit(run, Submission(1, OpKind.NOOP, b"{}"))
        data = bytes(range(256)) * 15_000  # 3.84 MB
        complete(services, run, 1, data, PROTOBUF)
        answer = http.post("/api/v1/retrieve_future", json={"request_id": f"{run.stream_id}:1"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, PROTOBUF)
        assert answer.content == data


def test_a_function_that_is_killed_in_a_long_poll_loses_nothing(
    function: Callable[..., Function], http: httpx.Client, services: Services, key: str
) -> None:
    run = a_run(services)
    short = function("api", timeout_s=1.0)
    healthz = http_event("GET", f"{URL}/healthz")
    assert short.invoke(healthz)["statusCode"] == 200
    asked = {"request_id": f"{run.stream_id}:0"}
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    url = f"{URL}/api/v1/retrieve_future"
    with pytest.raises(TimedOut):
        short.invoke(http_event("POST", url, headers=headers, body=json.dumps(asked).encode()))
    assert short.pid is None
    assert services.outcomes.get(run, 0).state is OpState.PENDING
    complete(services, run, 0, b'{"x": 1}', "application/json")
    assert http.post("/api/v1/retrieve_future", json=asked).json() == {"x": 1}
    assert (short.invoke(healthz)["statusCode"], short.starts) == (200, 2)
