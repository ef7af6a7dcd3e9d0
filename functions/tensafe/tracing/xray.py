"""Subsegments in the trace that X-Ray keeps of a function's event, by Powertools' Tracer.

Lambda makes the segment and says in the environment whether it is sampled. Below it is the handler's
subsegment, and below that one for each call of AWS. They leave one by one as datagrams to the daemon beside
the function, which is not waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from aws_lambda_powertools import Tracer as PowertoolsTracer
from aws_xray_sdk.core import xray_recorder

from tensafe.tracing.xray_calls import trace_calls
from tensafe.tracing.xray_context import EventContext
from tensafe.tracing.xray_documents import NamedFieldsEmitter

Handler = Callable[[Any, object], Any]
"""Of a function's events: (event, Lambda's context) -> answer."""
_SAYS_WHAT_FAILED: Final = "aws_lambda_powertools.tracing"


class XrayTracer:
    """Implements `Tracer`. One for a process, which it changes: there is one recorder, and botocore."""

    def __init__(self, service: str) -> None:
        logging.getLogger("aws_xray_sdk").setLevel(logging.ERROR)
        logging.getLogger(_SAYS_WHAT_FAILED).setLevel(logging.CRITICAL)  # as the runtime does by itself
        self._tracer = PowertoolsTracer(service=service, auto_patch=False)
        xray_recorder.configure(context=EventContext(), emitter=NamedFieldsEmitter(), max_trace_back=0)
        if not self._tracer.disabled:
            trace_calls()

    def handler(self, role: str, handler: Handler) -> Handler:
        """The handler in a subsegment of its own, `## role`; neither its events nor its answers are kept."""

        def handle(event: Any, context: object) -> Any:  # noqa: ANN401 - JSON
            return handler(event, context)

        handle.__name__ = role
        captured: Handler = self._tracer.capture_lambda_handler(
            handle, capture_response=False, capture_error=False
        )
        return captured

    @contextmanager
    def span(self, name: str, traceparent: str | None, **attributes: str | int) -> Iterator[None]:
        """A subsegment of the event in hand, whatever `traceparent` says."""
        with xray_recorder.in_subsegment(name):
            self.annotate(**attributes)
            yield

    def annotate(self, **attributes: str | int) -> None:
        for name, value in attributes.items():
            xray_recorder.put_annotation(name, value)

    def answered(self, status: int) -> None:
        """What the event's request was answered: 5xx is a fault of ours, 4xx an error of the client's."""
        subsegment = xray_recorder.current_subsegment()
        if subsegment is not None:
            subsegment.put_http_meta("status", status)
