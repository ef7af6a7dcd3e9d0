"""Whether X-Ray is told of the calls of an event: where Lambda says that its daemon is.

Elsewhere (an emulator, a test) nothing is imported and no botocore is patched.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Final

from tensafe.lambdas import RUNTIME
from tensafe.lambdas.log_lines import Handler

if TYPE_CHECKING:
    from tensafe.tracing.xray import XrayTracer

_DAEMON: Final = "AWS_XRAY_DAEMON_ADDRESS"


@functools.cache
def xray_tracer() -> XrayTracer | None:
    """The process' own; None where there is no daemon."""
    if RUNTIME not in os.environ or _DAEMON not in os.environ:
        return None
    from tensafe.tracing.xray import XrayTracer  # noqa: PLC0415 - what nothing else needs

    return XrayTracer(os.environ.get("TENSAFE_SERVICE_NAME", "tensafe"))


def traced(role: str, handler: Handler) -> Handler:
    """The handler in a subsegment of its own, if there is anybody to tell."""
    tracer = xray_tracer()
    return handler if tracer is None else tracer.handler(role, handler)
