"""A function's log lines: those of every process, and of the event in hand what Powertools' Logger tells."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter
from aws_lambda_powertools.logging.lambda_context import build_lambda_context_model

from tensafe.lambdas.xray import trace_id
from tensafe.observability import JsonFormatter

_PROVISIONED: Final = "provisioned-concurrency"
_OF_A_RECORD: Final = ("level", "location", "message", "timestamp")
"""What Powertools would say of a record; its message and exception quote whatever a library says."""
Event = Mapping[str, Any]
Handler = Callable[[Event, object], Any]


class FunctionFormatter(LambdaPowertoolsFormatter):
    """`JsonFormatter`'s fields; which function it is, and of the event in hand `function_request_id`,
    `xray_trace_id` and `cold_start`.

    Made once for a process, whose events come one after another.
    """

    def __init__(self, role: str) -> None:
        self._ours = JsonFormatter(role)
        self._cold = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != _PROVISIONED
        super().__init__(
            json_serializer=partial(json.dumps, default=str, separators=(",", ":")),
            cold_start=self._cold,
            function_name=os.environ.get("AWS_LAMBDA_FUNCTION_NAME"),
            function_memory_size=os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE"),
            function_version=os.environ.get("AWS_LAMBDA_FUNCTION_VERSION"),
        )
        self.remove_keys(_OF_A_RECORD)

    def format(self, record: logging.LogRecord) -> str:
        event = {**self.get_current_keys(), "xray_trace_id": trace_id()}
        told = {name: value for name, value in event.items() if value is not None}
        return self.serialize({**self._ours.fields(record), **told})

    def begin(self, context: object) -> None:
        """From now on lines are of this event (`context` is Lambda's)."""
        self.append_keys(cold_start=self._cold, **vars(build_lambda_context_model(context)))
        self._cold = False


def told(handler: Handler) -> Handler:
    """The handler, with lines that say which event they are of. Without Lambda's context nothing is told."""

    def handle(event: Event, context: object) -> Any:  # noqa: ANN401 - as the handler's
        if context is not None:
            for one in logging.getLogger().handlers:
                if isinstance(one.formatter, FunctionFormatter):
                    one.formatter.begin(context)
        return handler(event, context)

    return handle
