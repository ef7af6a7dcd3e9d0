"""Which subsegment hangs from which, and what is let out: the SDK's recorder with our context and door."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from aws_xray_sdk.core import xray_recorder
from aws_xray_sdk.core.context import Context
from aws_xray_sdk.core.models.segment import Segment
from aws_xray_sdk.core.models.subsegment import Subsegment
from botocore.exceptions import ClientError

from tensafe.correlation import carried
from tensafe.lambdas import api
from tensafe.tracing.xray_context import EventContext
from tensafe.tracing.xray_documents import NamedFieldsEmitter, document

CANARY = "the quick brown prompt"
PARENT = "53995c3f42cd8ad8"


class Kept:
    """In the place of the socket."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def send_entity(self, entity: Any) -> None:
        self.texts.append(entity.serialize())

    @property
    def by_name(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        waiting = [json.loads(text) for text in self.texts]
        while waiting:
            one = waiting.pop()
            waiting += [{"parent_id": one["id"], **below} for below in one.pop("subsegments", ())]
            found[one["name"]] = one
        return found


def begin_event(patch: pytest.MonkeyPatch, number: int = 1, sampled: int = 1) -> str:
    root = f"1-{number:08x}-{0:024x}"
    patch.setenv("_X_AMZN_TRACE_ID", f"Root={root};Parent={PARENT};Sampled={sampled};Lineage=1:a:0")
    return root


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    one = Kept()
    monkeypatch.setattr(xray_recorder, "_context", EventContext())
    monkeypatch.setattr(xray_recorder, "_emitter", NamedFieldsEmitter(one))
    monkeypatch.setattr(xray_recorder.streaming, "streaming_threshold", 0)
    yield one
    xray_recorder.clear_trace_entities()


def call(name: str = "call") -> None:
    with xray_recorder.in_subsegment(name):
        pass


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def of_a_route() -> None:
    """As FastAPI runs a route that is no coroutine: a loop of its own, and a thread of the pool."""

    async def route() -> None:
        await anyio.to_thread.run_sync(call)

    anyio.run(route)


@pytest.mark.parametrize("work", [call, of_a_route, lambda: in_a_thread(carried(call))])
def test_a_call_hangs_from_the_handler_s_in_whatever_thread_it_is_made(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]
) -> None:
    root = begin_event(monkeypatch)
    with xray_recorder.in_subsegment("handler"):
        work()
    found = kept.by_name
    assert found["handler"]["parent_id"] == PARENT
    assert found["call"]["parent_id"] == found["handler"]["id"]
    assert {one["trace_id"] for one in found.values()} == {root}


def test_the_sdk_s_own_context_would_lose_the_handler(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so for each call, at the level of errors or by raising: it is of one thread."""
    monkeypatch.setattr(xray_recorder, "_context", Context("LOG_ERROR"))
    xray_recorder.begin_segment("lambda", sampling=1)
    with xray_recorder.in_subsegment("handler"):
        of_a_route()
    assert "call" not in kept.by_name


def test_a_thread_of_the_process_hangs_its_calls_from_lambda_s_segment(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = begin_event(monkeypatch)
    with xray_recorder.in_subsegment("handler"):
        in_a_thread(call)
    assert (kept.by_name["call"]["parent_id"], kept.by_name["call"]["trace_id"]) == (PARENT, root)


def test_two_calls_at_once_are_beside_each_other(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_event(monkeypatch)
    both = threading.Barrier(2)

    def overlapping(name: str) -> None:
        with xray_recorder.in_subsegment(name):
            both.wait(timeout=10)

    async def route() -> None:
        async with anyio.create_task_group() as group:
            for name in ("one", "other"):
                group.start_soon(anyio.to_thread.run_sync, overlapping, name)

    with xray_recorder.in_subsegment("handler"):
        anyio.run(route)
    found = kept.by_name
    assert {found[name]["parent_id"] for name in ("one", "other")} == {found["handler"]["id"]}


def test_what_outlives_its_handler_neither_fails_nor_enters_the_next_event(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_event(monkeypatch)
    with xray_recorder.in_subsegment("handler"):
        late, later = carried(call), carried(lambda: call("later"))
    in_a_thread(late)
    assert kept.by_name["call"]["parent_id"] == PARENT
    root = begin_event(monkeypatch, 2)
    in_a_thread(later)
    assert (kept.by_name["later"]["parent_id"], kept.by_name["later"]["trace_id"]) == (PARENT, root)


@pytest.mark.parametrize("header", [None, "", "Root=nonsense", f"Root=1-{1:08x}-{0:024x};Parent={PARENT}"])
def test_without_a_trace_nothing_is_told_logged_or_raised(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, header: str | None
) -> None:
    monkeypatch.setenv("AWS_XRAY_CONTEXT_MISSING", "RUNTIME_ERROR")
    monkeypatch.delenv("_X_AMZN_TRACE_ID", raising=False)
    if header is not None:
        monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    with xray_recorder.in_subsegment("handler"):
        xray_recorder.put_annotation("stream", "a")
        of_a_route()
    assert not xray_recorder.is_sampled()
    assert (kept.texts, [one for one in caplog.records if one.name.startswith("aws_xray")]) == ([], [])


def test_a_trace_that_is_not_sampled_is_not_told(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_event(monkeypatch, sampled=0)
    with xray_recorder.in_subsegment("handler"):
        of_a_route()
    assert kept.texts == []
    assert xray_recorder.current_segment().subsegments == []


def recorded() -> Subsegment:
    """All that the SDK and Powertools can be made to keep, with the canary wherever there is room."""
    one = Subsegment("dynamodb", "aws", Segment("lambda"))
    one.put_annotation("stream", "s")
    one.put_annotation("tenant", CANARY)
    one.put_annotation("kind", CANARY * 20)
    one.put_metadata("api response", {"body": CANARY})
    one.set_sql({"sanitized_query": CANARY})
    one.set_aws(
        {"operation": "PutItem", "key": CANARY, "table_name": "t", "item_collection_metrics": [CANARY]}
    )
    one.put_http_meta("url", f"https://example.test/{CANARY}")
    one.put_http_meta("status", 503)
    one.user = CANARY
    answer = {"Error": {"Code": "Refused", "Message": CANARY}}
    one.add_exception(ClientError(answer, "PutItem"), [("a.py", 1, "f", CANARY)], remote=True)
    below = Subsegment("below", "local", one.parent_segment)
    one.add_subsegment(below)
    below.put_metadata("error", CANARY)
    return one


def test_of_all_that_is_recorded_named_fields_are_told() -> None:
    one = recorded()
    assert CANARY in one.serialize()  # which is what the SDK's own emitter sends
    told = document(vars(one))
    assert CANARY not in json.dumps(told)
    assert told.pop("subsegments")[0]["name"] == "below"
    (cause,) = told.pop("cause")["exceptions"]
    assert (cause["type"], cause["remote"]) == ("ClientError", True)
    assert (told["fault"], told["http"]) == (True, {"response": {"status": 503}})
    assert (told["aws"], told["annotations"]) == (
        {"operation": "PutItem", "table_name": "t"},
        {"stream": "s"},
    )
    plain = {"id", "name", "start_time", "parent_id", "trace_id", "type", "namespace"}
    assert told.keys() - plain == {"fault", "http", "aws", "annotations"}


@pytest.mark.parametrize(("cause", "told"), [("a" * 16, "a" * 16), (CANARY, None), ({}, None)])
def test_a_cause_is_the_id_of_an_earlier_one_or_types(cause: object, told: str | None) -> None:
    assert document({"id": "1", "cause": cause}).get("cause") == told


def test_an_answer_that_names_no_request_is_given_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mangum's own, when the application has raised before it said anything."""
    told: dict[str, Any] = {}

    class Told:
        def annotate(self, **attributes: str | int) -> None:
            told.update(attributes)

        def answered(self, status: int) -> None:
            told["status"] = status

    monkeypatch.setattr(api, "xray_tracer", Told)
    failed = {"statusCode": 500, "headers": {"content-type": "text/plain"}, "body": "Internal Server Error"}
    assert api._traced(lambda event, context: failed)({"headers": {}}, None) is failed
    assert told == {"request_id": "", "status": 500}
