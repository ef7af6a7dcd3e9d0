"""A function's lines: the same as everywhere, and which event they are of; nothing that a library quotes."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tensafe.correlation import correlated
from tensafe.lambdas import xray
from tensafe.lambdas.log_lines import FunctionFormatter, told
from tensafe.observability import JsonFormatter

ROOT, PARENT = "1-5759e988-bd862e3fe1be46a994272793", "53995c3f42cd8ad8"
PLAIN = {"time", "level", "role", "logger", "event"}
CONTEXT = SimpleNamespace(
    function_name="ts-api",
    memory_limit_in_mb=1024,
    invoked_function_arn="arn:aws:lambda:eu-central-1:123456789012:function:ts-api",
    aws_request_id="52fdfc07-2182-154f-163f-5f0f9a621d72",
)
CANARY = "sesame-tml-0123"


def record(text: str = "operation submitted", **extra: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "tensafe.api", "levelname": "INFO", "msg": text, **extra})


def line(formatter: logging.Formatter, *args: Any, **extra: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(formatter.format(record(*args, **extra)))
    return found


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "ts-api")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1024")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_VERSION", "7")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", f"Root={ROOT};Parent={PARENT};Sampled=1")


def test_before_the_first_event_a_line_says_which_function_it_is() -> None:
    found = line(FunctionFormatter("api"))
    assert found.keys() - {"xray_trace_id"} == PLAIN | {
        "cold_start",
        "function_name",
        "function_memory_size",
        "function_version",
    }
    assert (found["function_name"], found["function_version"], found["cold_start"]) == ("ts-api", "7", True)


def test_of_an_event_it_says_what_powertools_does_beside_the_same_fields() -> None:
    formatter = FunctionFormatter("api")
    formatter.begin(CONTEXT)
    with correlated("req-1"):
        found = line(formatter, stream="s-1:train:0", seq=3)
        plain = line(JsonFormatter("api"), stream="s-1:train:0", seq=3)
    assert plain.pop("time") >= found.pop("time")
    assert plain.items() <= found.items()
    assert found["function_request_id"] == CONTEXT.aws_request_id
    assert found["function_arn"] == CONTEXT.invoked_function_arn
    assert (found["request_id"], found["xray_trace_id"], found["cold_start"]) == ("req-1", ROOT, True)


def test_each_event_has_its_own_and_the_start_is_cold_once(monkeypatch: pytest.MonkeyPatch) -> None:
    formatter = FunctionFormatter("api")
    for number, cold in ((1, True), (2, False), (3, False)):
        monkeypatch.setenv("_X_AMZN_TRACE_ID", f"Root=1-{number:08x}-{0:024x};Sampled=0")
        formatter.begin(SimpleNamespace(**{**vars(CONTEXT), "aws_request_id": f"id-{number}"}))
        found = line(formatter)
        assert (found["function_request_id"], found["cold_start"]) == (f"id-{number}", cold)
        assert found["xray_trace_id"] == f"1-{number:08x}-{0:024x}"
    monkeypatch.delenv("_X_AMZN_TRACE_ID")
    assert "xray_trace_id" not in line(formatter)


def test_a_process_that_waited_for_its_first_event_is_not_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "provisioned-concurrency")
    formatter = FunctionFormatter("api")
    formatter.begin(CONTEXT)
    assert line(formatter)["cold_start"] is False


def test_no_library_s_words_are_in_it() -> None:
    """Powertools' own lines have the exception's message and notes, and the statements that it passed."""
    formatter = FunctionFormatter("api")
    error = ValueError(CANARY)
    error.add_note(CANARY)
    try:
        raise error
    except ValueError as caught:
        raised = (ValueError, caught, caught.__traceback__)
    text = formatter.format(record("it failed", exc_info=raised))
    assert CANARY not in text
    found = json.loads(text)
    assert (found["exception"], found["event"]) == ("ValueError", "it failed")
    assert found["places"][0].startswith("test_log_lines.py:")


def test_a_text_that_is_json_stays_a_text() -> None:
    assert line(FunctionFormatter("api"), '{"a": 1}')["event"] == '{"a": 1}'


@pytest.mark.filterwarnings("ignore:POWERTOOLS_DEV")
def test_variables_that_have_powertools_log_the_event_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGGER_LOG_EVENT", "DEV", "DEBUG", "LOGGER_SAMPLE_RATE"):
        monkeypatch.setenv(f"POWERTOOLS_{name}", "1")
    written: list[str] = []
    handler = logging.StreamHandler(SimpleNamespace(write=written.append, flush=lambda: None))
    handler.setFormatter(FunctionFormatter("api"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        assert told(lambda event, _: event["body"])({"body": CANARY}, CONTEXT) == CANARY
        logging.getLogger("tensafe.api").warning("done")
    finally:
        root.removeHandler(handler)
    (text,) = [text for text in written if text.strip()]
    assert CANARY not in text
    assert "\n" not in text.strip()
    assert json.loads(text)["function_request_id"] == CONTEXT.aws_request_id


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (f"Root={ROOT};Parent={PARENT};Sampled=1", f"00-{ROOT[2:].replace('-', '')}-{PARENT}-01"),
        (f"Root={ROOT};Parent={PARENT};Lineage=a:1;Sampled=1", f"00-{ROOT[2:].replace('-', '')}-{PARENT}-01"),
        (f"Root={ROOT};Parent={PARENT};Sampled=0", None),
        (f"Root={ROOT};Sampled=1", None),
        ("", None),
        ("nonsense", None),
    ],
)
def test_a_trace_that_x_ray_keeps_is_a_parent_for_spans(
    monkeypatch: pytest.MonkeyPatch, header: str, span: str | None
) -> None:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    assert xray.traceparent() == span
