"""Spans of the trainer's work reach an OpenTelemetry collector on loopback, below the client's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tensafe.contracts.errors import ConfigurationError
from tensafe.correlation import correlated, well_formed_traceparent
from tensafe.tracing.otlp import OtlpTracer
from tensafe_gpu.trainer.__main__ import build_worker
from tensafe_gpu.trainer.base_model import BaseModel
from tests.integration.service.test_canaries import Canaries
from tests.support.training_log import forward_backward, optim_step, private, smallest_model
from tests.unit.operations.world import BASE
from tests.unit.trainer_worker.rig import Rig

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
TOKENS = [251, 13, 307, 29, 283, 17, 311, 7, 263, 19]
UNIT = 0x7ACEC0DE12345678


class Collected(list[Span]):
    """Spans that a collector was sent, and the bodies of the requests that they came in."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []


@pytest.fixture
def collector() -> Iterator[tuple[str, Collected]]:
    """Its URL, and what it was sent."""
    spans = Collected()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            spans.bodies.append(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_an_operation_is_a_span_below_the_clients(collector: tuple[str, Collected], tmp_path: Path) -> None:
    url, spans = collector
    tracer = OtlpTracer(url)
    base = BaseModel.load(smallest_model(tmp_path), name=BASE)
    rig = Rig(base)
    rig.worker = build_worker(
        replace(rig.services, tracer=tracer), BASE, base, "trainer-traced", rig.settings
    )
    rig.begin()
    with correlated("req-0123456789abcdef", TRACEPARENT):
        rig.submit(1, forward_backward())
    rig.drain()
    tracer.flush()
    mine = [span for span in spans if span.trace_id.hex() == TRACE]
    (span,) = mine
    assert (span.name, span.parent_span_id.hex()) == ("train", PARENT)
    attributes = {one.key: one.value.string_value or one.value.int_value for one in span.attributes}
    assert attributes == {
        "tensafe.stream": rig.world.stream("s-1:train:0").stream_id,
        "tensafe.seq": 1,
        "tensafe.kind": "forward_backward",
    }
    roots = [span for span in spans if span.trace_id.hex() != TRACE]
    assert [span.parent_span_id for span in roots] == [b""]  # the creation, which no client traced
    assert all(span.end_time_unix_nano > span.start_time_unix_nano for span in spans)


def test_what_is_annotated_is_of_the_span_in_hand(collector: tuple[str, Collected]) -> None:
    url, spans = collector
    tracer = OtlpTracer(url)
    tracer.annotate(seq=1)  # there is none
    with tracer.span("train", None):
        tracer.annotate(seq=2)
    tracer.flush()
    (span,) = spans
    assert [(one.key, one.value.int_value) for one in span.attributes] == [("tensafe.seq", 2)]


def test_of_an_error_only_its_type_leaves(collector: tuple[str, Collected]) -> None:
    url, spans = collector
    tracer = OtlpTracer(url)
    with pytest.raises(ValueError, match="secret"), tracer.span("train", None):
        raise ValueError("a secret value")
    tracer.flush()
    (span,) = spans
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "ValueError")
    assert b"secret" not in span.SerializeToString()


def test_no_span_holds_what_was_worked_on(collector: tuple[str, Collected], tmp_path: Path) -> None:
    url, spans = collector
    tracer, canaries = OtlpTracer(url), Canaries()
    base = BaseModel.load(smallest_model(tmp_path), name=BASE)
    rig = Rig(base)
    rig.worker = build_worker(
        replace(rig.services, tracer=tracer), BASE, base, "trainer-traced", rig.settings
    )
    rig.begin(optimizer=private())
    rig.submit(1, forward_backward(tokens=[TOKENS, TOKENS[:7]], units=[UNIT, UNIT + 1]))
    rig.submit(2, forward_backward(tokens=[[*TOKENS, 99999]], units=[UNIT + 2]))  # refused
    rig.submit(3, optim_step(5e-2))
    rig.drain()
    (run,) = rig.worker._hot.all()
    assert run.state is not None
    assert run.private is not None
    canaries.tokens("a training example", TOKENS[:5])
    canaries.tokens("a target", TOKENS[1:6])
    canaries.number("a unit id", UNIT)
    canaries.floats("weights, and so a gradient", run.state.params.numpy())
    canaries.patterns[run.private.noise_secret] = "the noise secret"
    canaries.patterns |= {key: "a data key" for _, key in rig.services.vault._keys.values()}
    tracer.flush()
    assert [span.name for span in spans] == ["train"] * 4
    path = tmp_path / "sent"
    path.write_bytes(b"".join(spans.bodies))
    assert b"forward_backward" in path.read_bytes()
    assert len(canaries.patterns) > 15
    assert canaries.found_in([path]) == []


def test_only_a_well_formed_traceparent_is_carried() -> None:
    assert well_formed_traceparent(TRACEPARENT) == TRACEPARENT
    for wrong in (
        None,
        "",
        TRACEPARENT + "x",
        TRACEPARENT.upper(),
        f"00-{'0' * 32}-{PARENT}-01",
        "00-x-y-01",
    ):
        assert well_formed_traceparent(wrong) is None


def test_an_endpoint_in_clear_beyond_this_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        OtlpTracer("http://collector.example:4318/v1/traces")
