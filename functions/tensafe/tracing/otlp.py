"""Spans to an OpenTelemetry collector, by OTLP over HTTP. Needs the extra `otel`.

They leave in batches from a thread; a collector that is away costs the work nothing but a line in the log. A
process that is killed loses the spans of its last seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tensafe.contracts.errors import ConfigurationError
from tensafe.contracts.network import trusted_url

_TIMEOUT_S: Final = 5.0

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import StatusCode, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ConfigurationError("TENSAFE_OTLP_ENDPOINT needs OpenTelemetry: install tensafe[otel]") from error


class OtlpTracer:
    """Implements `Tracer`. `endpoint` is the collector's URL for traces, such as http://127.0.0.1:4318/v1/traces.

    Raises ConfigurationError for an endpoint over plain http that is not on this machine.
    """

    def __init__(self, endpoint: str, service: str = "tensafe") -> None:
        if not trusted_url(endpoint):
            raise ConfigurationError("TENSAFE_OTLP_ENDPOINT must be an https URL; http is for loopback alone")
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}))
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tensafe")

    @contextmanager
    def span(self, name: str, traceparent: str | None, **attributes: str | int) -> Iterator[None]:
        above = Context()
        if traceparent is not None:
            above = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=above)
        given = {f"tensafe.{name}": value for name, value in attributes.items()}
        with self._tracer.start_as_current_span(
            name, context=above, attributes=given, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_status(StatusCode.ERROR, type(error).__name__)  # its message may quote data
                raise

    def annotate(self, **attributes: str | int) -> None:
        get_current_span().set_attributes({f"tensafe.{name}": value for name, value in attributes.items()})

    def flush(self) -> None:
        """Send what waits."""
        self._provider.force_flush()
