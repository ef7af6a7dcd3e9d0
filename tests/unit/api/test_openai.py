"""The OpenAI face over memory: what it refuses, what it submits, how it tells results and failures."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tensafe.api.execution_policy import POLICY_HEADER
from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.text import TextChoice, TextPayload, TextResult, TextSoFar, TokenText
from tensafe.operations.checkpoints import CheckpointKind
from tensafe.operations.records import Failure, Operation, OpKind, Result, StreamRecord
from tests.unit.operations.world import BASE, SAMPLE, TENANT, World

TOKENS = (
    TokenText(text="Hel", logprob=-0.5, top=(("Hel", -0.5), ("Hi", -1.0))),
    TokenText(text="lo", logprob=-1),
)
Answer = Callable[[World, StreamRecord, Operation, TextPayload], None]


def hello(world: World, stream: StreamRecord, operation: Operation, payload: TextPayload) -> None:
    tokens = None if payload.top_logprobs is None else TOKENS
    choice = TextChoice(text="Hello", stop_reason="stop", tokens=tokens)
    result = TextResult(
        choices=(choice,) * payload.num_samples,
        prompt_tokens=2,
        completion_tokens=3 * payload.num_samples,
        attestation={"of": payload.prompt or "chat"},
        attestation_salt="00",
    )
    done = Result("application/json", result.model_dump_json().encode())
    world.services.outcomes.complete(stream, operation, done)


@contextmanager
def answering(world: World, answer: Answer = hello) -> Iterator[list[TextPayload]]:
    """A sampler in a thread that does what the test says with each text request."""
    seen: list[TextPayload] = []
    stop = threading.Event()

    def serve() -> None:
        while not stop.wait(0.005):
            for message in world.queues.receive(SAMPLE, visibility_s=30):
                stream = world.stream(str(message.body["stream"]))
                operation = world.op(stream, int(str(message.body["seq"])))
                raw = world.services.outcomes.payload(stream, operation.seq)
                assert operation.kind is OpKind.TEXT
                seen.append(TextPayload.model_validate_json(raw))
                answer(world, stream, world.services.outcomes.start(operation, ()), seen[-1])
                world.queues.delete(SAMPLE, message.receipt)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def events(body: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], **changes}


def test_one_over_the_tenants_waits_is_refused_before_anything_is_submitted(world: World) -> None:
    key, _ = world.services.api_keys.create(TENANT, ["sample"])
    app = create_app(world.services, EdgeLimits(waits_per_tenant=1))
    go = threading.Event()

    def later(*arguments: Any) -> None:
        assert go.wait(20)
        hello(*arguments)

    with (
        TestClient(app, headers={"X-API-Key": key}) as http,
        ThreadPoolExecutor(1) as pool,
        answering(world, later) as seen,
    ):
        for stream in (False, True):  # the place is free again after either
            go.clear()
            asked = len(seen)
            waiting = pool.submit(http.post, "/v1/chat/completions", json=chat(stream=stream))
            while len(seen) == asked:
                time.sleep(0.01)
            refused = http.post("/v1/chat/completions", json=chat())
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
            assert refused.headers["retry-after"] == "1"
            go.set()
            assert waiting.result(timeout=20).status_code == 200
            assert len(seen) == asked + 1
        assert http.post("/v1/chat/completions", json=chat(top_k=1.5)).status_code == 422
        assert http.post("/v1/chat/completions", json=chat()).status_code == 200


def test_a_completion_has_the_shape_that_openais_clients_read(world: World, http: TestClient) -> None:
    with answering(world) as seen:
        answer = http.post(
            "/v1/completions",
            json={"model": BASE, "prompt": ["a", "b"], "n": 2, "logprobs": 2, "stop": ["."]},
        ).json()
    assert [(p.prompt, p.num_samples, p.params.stop, p.params.max_tokens) for p in seen] == [
        ("a", 2, (".",), 16),
        ("b", 2, (".",), 16),
    ]
    assert (answer["object"], answer["model"]) == ("text_completion", BASE)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][0]["text"] == "Hello"
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["Hel", "lo"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"Hel": -0.5, "Hi": -1.0}, {}],
        "text_offset": [0, 3],
    }
    assert answer["usage"]["total_tokens"] == 2 * (2 + 6)
    assert [one["attestation"] for one in answer["attestations"]] == [{"of": "a"}, {"of": "b"}]
    assert answer["attestations"][0]["attestation_salt"] == "00"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_he_01_the_policy_header_is_not_passed_over(world: World, http: TestClient, path: str) -> None:
    body = chat() if "chat" in path else {"model": BASE, "prompt": "a"}
    with answering(world) as seen:
        assert http.post(path, json=body, headers={POLICY_HEADER: "HE_REQUIRED"}).status_code == 200
        refused = http.post(path, json=body, headers={POLICY_HEADER: "REQUIRED"})
    assert [one.execution_policy for one in seen] == [ExecutionPolicy.HE_REQUIRED]
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, POLICY_HEADER)


def test_a_chat_answer_is_the_assistants_turn(world: World, http: TestClient) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    body = chat(
        messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}],
        max_completion_tokens=5,
        logprobs=True,
    )
    with answering(world) as seen:
        answer = http.post("/v1/chat/completions", json=body).json()
    assert [m.model_dump() for m in seen[0].messages or ()] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Hi"},
    ]
    assert (seen[0].params.max_tokens, seen[0].top_logprobs) == (5, 0)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert [token["token"] for token in choice["logprobs"]["content"]] == ["Hel", "lo"]
    assert choice["finish_reason"] == "stop"


def test_a_stream_tells_pieces_as_they_come_and_the_rest_at_the_end(world: World, http: TestClient) -> None:
    def slowly(world: World, stream: StreamRecord, operation: Operation, payload: TextPayload) -> None:
        for number, piece in enumerate(("He", "l")):
            part = TextSoFar(added={0: piece}).model_dump_json().encode()
            world.services.progress.add(stream, operation, number, part)
            world.services.doorbell.finished(stream.stream_id)
            threading.Event().wait(0.1)
        hello(world, stream, operation, payload)

    with answering(world, slowly) as seen:
        body = chat(stream=True, stream_options={"include_usage": True})
        answer = http.post("/v1/chat/completions", json=body)
    assert seen[0].stream
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.text)
    assert told[-1] == "[DONE]"
    assert told[-2]["usage"]["completion_tokens"] == 3
    assert told[-2]["choices"] == []
    deltas = [event["choices"][0]["delta"] for event in told[:-2]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:]] == ["He", "l", "lo"]
    assert told[-3]["choices"][0]["finish_reason"] == "stop"
    assert told[-3]["attestations"][0]["attestation"] == {"of": "chat"}


def test_a_stream_that_another_sampler_took_over_ends_with_an_error(world: World, http: TestClient) -> None:
    """It may draw other tokens than those that were told."""

    def replaced(world: World, stream: StreamRecord, operation: Operation, payload: TextPayload) -> None:
        part = TextSoFar(added={0: "Other"}).model_dump_json().encode()
        world.services.progress.add(stream, operation, 0, part)
        world.services.doorbell.finished(stream.stream_id)
        threading.Event().wait(0.3)
        hello(world, stream, operation, payload)

    with answering(world, replaced):
        told = events(http.post("/v1/completions", json={"model": BASE, "prompt": "a", "stream": True}).text)
    assert told[0]["choices"][0]["text"] == "Other"
    assert told[-1]["error"]["code"] == "unavailable"
    assert "[DONE]" not in told


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_told_with_its_code_before_any_event(
    world: World, http: TestClient, stream: bool
) -> None:
    def failing(world: World, s: StreamRecord, operation: Operation, _: TextPayload) -> None:
        world.services.outcomes.fail(s, operation, Failure.of(InvalidRequest("too long", field="prompt")))

    with answering(world, failing):
        answer = http.post("/v1/completions", json={"model": BASE, "prompt": "a", "stream": stream})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "prompt"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"surprise": 1}, "surprise"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"temperature": 3.0}, "temperature"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(http: TestClient, change: dict[str, Any], field: str) -> None:
    answer = http.post("/v1/chat/completions", json=chat(**change))
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), answer.text


def test_values_that_change_nothing_are_accepted(world: World, http: TestClient) -> None:
    same = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "stop": [],
        "user": "u",
        "tools": None,
    }
    with answering(world) as seen:
        assert http.post("/v1/chat/completions", json=chat(**same)).status_code == 200
    assert seen[0].params.stop is None


def test_models_are_base_models_and_the_callers_own_sampler_weights(world: World, http: TestClient) -> None:
    mine, theirs = world.run("s-1:train:0"), world.run("s-2:train:0", tenant="other")
    world.checkpoint(mine, "final", kind=CheckpointKind.SAMPLER)
    world.checkpoint(mine, "state", kind=CheckpointKind.TRAINING)
    world.checkpoint(theirs, "final", kind=CheckpointKind.SAMPLER)
    path, foreign = "tinker://s-1:train:0/sampler_weights/final", "tinker://s-2:train:0/sampler_weights/final"
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [BASE, path]
    assert http.get(f"/v1/models/{path}").json()["id"] == path
    assert http.get(f"/v1/models/{BASE}").json()["owned_by"] == "tensafe"
    for absent in (foreign, "nobody/knows", "tinker://s-1:train:0/weights/state"):
        assert http.get(f"/v1/models/{absent}").status_code == 404
        answer = http.post("/v1/completions", json={"model": absent, "prompt": "a"})
        assert answer.status_code in (404, 422), absent
    with answering(world):
        assert http.post("/v1/completions", json={"model": path, "prompt": "a"}).status_code == 200


def test_one_session_serves_all_requests_for_a_model_and_is_replaced_when_it_is_gone(
    world: World, http: TestClient
) -> None:
    with answering(world):
        for _ in range(2):
            assert http.post("/v1/completions", json={"model": BASE, "prompt": "a"}).status_code == 200
        (first,) = {item.key.partition for item in world.due() if "/sampler/" in item.key.sort} and {
            str(item.body["sampler"]) for item in world.due() if "sampler" in item.body
        }
        assert [op.seq for op in world.log(world.stream(first))] == [1, 2]
        world.services.streams.erase(first, "acme")
        assert http.post("/v1/completions", json={"model": BASE, "prompt": "a"}).status_code == 200


def test_a_key_without_the_scope_sample_is_refused(world: World, http: TestClient) -> None:
    key, _ = world.services.api_keys.create("acme", ["train"])
    answer = http.post("/v1/chat/completions", json=chat(), headers={"X-API-Key": key})
    assert answer.status_code == 403
